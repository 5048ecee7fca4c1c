use std::sync::Arc;

use half::{bf16, f16};

use super::formats::StoredType;
use super::map::FileMap;
use super::slab::Slab;
use super::tensor::StoredTensor;
use super::tensor_map::{TensorMap, Unreadable};
use crate::error::{Error, Result};

/// Bytes in a page-aligned read-only mapping, as if they were a file.
pub(crate) fn mapped(bytes: &[u8]) -> Arc<FileMap> {
    let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
    map.copy_from_slice(bytes);
    Arc::new(map.make_read_only().unwrap().into())
}

/// Calls `open` with the file cut at every length and with every single bit flipped. It may fail with
/// an error or succeed, but not panic; a model that opens must also be readable.
pub(crate) fn damage(file: &[u8], open: impl Fn(Arc<FileMap>) -> Result<TensorMap>) {
    let check = |bytes: &[u8], what: String| {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let model = open(mapped(bytes))?;
            assert!(model.total_bytes() <= bytes.len() as u64);
            for name in model.names() {
                let tensor = model.get(name)?;
                assert_eq!(tensor.to_f32().len(), tensor.rows() * tensor.cols());
            }
            Ok::<_, Error>(())
        }));
        assert!(outcome.is_ok(), "panic with {what}");
        outcome.unwrap()
    };
    check(file, "the intact file".to_string()).unwrap();
    for len in 0..file.len() {
        let cut = check(&file[..len], format!("{len} bytes"));
        assert!(cut.is_err(), "opened with only {len} bytes of {}", file.len());
    }
    for bit in 0..8 * file.len() {
        let mut flipped = file.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = check(&flipped, format!("bit {bit} flipped"));
    }
}

fn tensor(dtype: StoredType, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor> {
    StoredTensor::new(&mapped(bytes), "t", dtype, shape, 0)
}

fn values(dtype: StoredType, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
    let t = tensor(dtype, shape, bytes).unwrap();
    let mut by_row = vec![0.0; t.rows() * t.cols()];
    for (row, out) in by_row.chunks_mut(t.cols()).enumerate() {
        t.row_f32(row, out);
    }
    assert_eq!(by_row, t.to_f32());
    by_row
}

#[test]
fn plain_types_become_f32() {
    let f32s: Vec<u8> = [1.5f32, -0.1, f32::MIN_POSITIVE].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(values(StoredType::F32, &[3], &f32s), [1.5, -0.1, f32::MIN_POSITIVE]);
    // binary16: 1.0, -2.0, the largest, the smallest subnormal.
    let f16s = [0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01, 0x00];
    assert_eq!(values(StoredType::F16, &[2, 2], &f16s), [1.0, -2.0, 65504.0, 2f32.powi(-24)]);
    // bfloat16: 1.0, -3.140625, 2^-126.
    let bf16s = [0x80, 0x3f, 0x49, 0xc0, 0x80, 0x00];
    assert_eq!(values(StoredType::Bf16, &[3, 1], &bf16s), [1.0, -3.140625, 2f32.powi(-126)]);
    assert_eq!(values(StoredType::U8, &[2], &[0, 255]), [0.0, 255.0]);
    assert_eq!(values(StoredType::I8, &[1, 1, 2], &[0x80, 0x7f]), [-128.0, 127.0]);
}

#[test]
fn rows_longer_than_the_conversion_chunk() {
    let halves: Vec<f16> = (0..3 * 131).map(|i| f16::from_f32(i as f32)).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let expected: Vec<f32> = (0..3 * 131).map(|i| i as f32).collect();
    assert_eq!(values(StoredType::F16, &[3, 131], &bytes), expected);
}

#[test]
fn blocks_become_f32() {
    // One row of two Q8_0 blocks: scales 0.5 and -2, quants i - 16 and 127 - i.
    let mut q8 = vec![0x00, 0x38];
    q8.extend((0..32).map(|i| (i - 16i8).cast_unsigned()));
    q8.extend([0x00, 0xc0]);
    q8.extend((0..32).map(|i| 127 - i));
    let row = values(StoredType::Q8_0, &[64], &q8);
    for i in 0..32 {
        assert_eq!(row[i], 0.5 * (i as f32 - 16.0));
        assert_eq!(row[32 + i], -2.0 * (127.0 - i as f32));
    }

    // Two rows of one block; byte i holds i in the low and 15 - i in the high nibble.
    let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let q4_0 = [&[0x00, 0x38], &nibbles[..], &[0x00, 0x3c], &nibbles[..]].concat();
    let rows = values(StoredType::Q4_0, &[2, 32], &q4_0);
    let q4_1 = [&[0x00, 0x38, 0x00, 0xc0], &nibbles[..]].concat();
    let with_min = values(StoredType::Q4_1, &[32], &q4_1);
    for i in 0..16 {
        let (low, high) = (i as f32, 15.0 - i as f32);
        assert_eq!((rows[i], rows[16 + i]), (0.5 * (low - 8.0), 0.5 * (high - 8.0)));
        assert_eq!((rows[32 + i], rows[48 + i]), (low - 8.0, high - 8.0));
        assert_eq!((with_min[i], with_min[16 + i]), (0.5 * low - 2.0, 0.5 * high - 2.0));
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let big = 1 << (usize::BITS / 2);
    for (dtype, shape, reason) in [
        (StoredType::F32, &[2, 0][..], "shape (2, 0) holds no element"),
        (StoredType::F32, &[17], "F32 of shape (17) at byte 0 does not fit in the file of 64 bytes"),
        (StoredType::F32, &[big, big], "does not fit"),
        (StoredType::F32, &[usize::MAX / 2], "does not fit"),
        (StoredType::U8, &[usize::MAX], "does not fit"),
        (StoredType::Q8_0, &[2, 48], "Q8_0 needs rows of a multiple of 32 elements, got shape (2, 48)"),
        (StoredType::Q4_0, &[], "multiple of 32"),
        (StoredType::U8, &[1; 9], "expected at most 8 dimensions, got 9"),
    ] {
        let error = tensor(dtype, shape, &[0; 64]).unwrap_err();
        assert!(matches!(&error, Error::Tensor { name, .. } if name == "t"));
        assert!(error.to_string().contains(reason), "{error}");
    }
    let far = StoredTensor::new(&mapped(&[0; 64]), "t", StoredType::U8, &[1], usize::MAX);
    assert!(far.is_err());
    let scalar = tensor(StoredType::U8, &[], &[7]).unwrap();
    assert_eq!((scalar.rows(), scalar.cols(), scalar.to_f32()), (1, 1, vec![7.0]));
}

#[test]
fn wrong_shape_names_both() {
    let t = tensor(StoredType::U8, &[2, 3], &[0; 6]).unwrap();
    assert_eq!((t.rows(), t.cols()), (2, 3));
    t.expect_shape(&[2, 3]).unwrap();
    let error = t.expect_shape(&[3, 2]).unwrap_err().to_string();
    assert_eq!(error, "tensor `t`: expected shape (3, 2), got (2, 3)");
}

#[test]
fn slabs_map_aligned_bytes_and_copy_others() {
    let map = mapped(&[9, 0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x40]);
    let at = |start, len| StoredTensor::new(&map, "t", StoredType::F32, &[len], start).unwrap();
    let (odd, even) =
        (Slab::<f32>::from_tensor(&at(1, 2)).unwrap(), Slab::<f32>::from_tensor(&at(4, 1)).unwrap());
    assert_eq!(odd[..], [1.0, 4.0]);
    assert!(!odd.is_mapped());
    assert_eq!(even[..], [f32::from_le_bytes([0x3f, 0, 0, 0x80])]);
    assert_eq!(even.is_mapped(), cfg!(target_endian = "little"));

    let error = Slab::<bf16>::from_tensor(&at(0, 1)).unwrap_err().to_string();
    assert_eq!(error, "tensor `t`: expected type Bf16, got F32");

    let owned = Slab::from(vec![1i8, -2]);
    assert_eq!(owned.clone()[..], [1, -2]);
    assert_eq!(format!("{owned:?}"), "Slab(I8 x 2, owned)");
    fn shared_between_threads<T: Send + Sync>(_: &T) {}
    shared_between_threads(&odd);
}

#[test]
fn a_slab_outlives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, [1, 2, 3, 4]).unwrap();
    let map = FileMap::open(&path).unwrap();
    let tensor = StoredTensor::new(&map, "t", StoredType::U8, &[4], 0).unwrap();
    let slab = Slab::<u8>::from_tensor(&tensor).unwrap().clone();
    drop(tensor);
    drop(map);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(slab[..], [1, 2, 3, 4]);
}

#[test]
fn what_is_no_file_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    assert!(matches!(FileMap::open(&empty), Err(Error::InvalidFile { path, .. }) if path == empty));
    assert!(matches!(FileMap::open(folder.path()), Err(Error::Io { .. })));
    assert!(matches!(FileMap::open(&folder.path().join("absent")), Err(Error::Io { .. })));
}

#[test]
fn a_map_names_what_it_lacks() {
    let mut map = TensorMap::default();
    map.insert(tensor(StoredType::U8, &[3], &[0; 3]).unwrap()).unwrap();
    map.supported_types = "F32 and F16".into();
    map.refuse("mask", &[1, 3], Unreadable::Type("BOOL".into())).unwrap();
    map.refuse("none", &[1, 0], Unreadable::Empty).unwrap();
    assert_eq!(map.total_bytes(), 3);
    assert_eq!(map.names().collect::<Vec<_>>(), ["t"]);
    assert!(map.contains("mask") && map.find("mask").is_err() && map.find("u").unwrap().is_none());
    let message = |r: Result<&StoredTensor>| r.unwrap_err().to_string();
    assert_eq!(message(map.get("u")), "tensor `u`: missing; it is not among the model's 3 tensors");
    assert_eq!(message(map.get("none")), "tensor `none`: shape (1, 0) holds no element");
    assert_eq!(
        map.unsupported_types_too(),
        "; nor is the type BOOL of its tensors supported, only F32 and F16"
    );
    let alone = "tensor `mask`: type BOOL is not supported; F32 and F16 are";
    assert_eq!(message(map.get("mask")), alone);
    for (name, of) in [("x", "F64"), ("y", "F64"), ("z", "I64")] {
        map.refuse(name, &[1], Unreadable::Type(of.into())).unwrap();
    }
    let too = "; nor are the types BOOL, F64, I64 of its tensors supported, only F32 and F16";
    assert_eq!(map.unsupported_types_too(), too);
    let with =
        "tensor `mask`: type BOOL is not supported, nor are F64, I64 of other tensors; F32 and F16 are";
    assert_eq!(message(map.get("mask")), with);
    assert!(map.insert(tensor(StoredType::U8, &[3], &[0; 3]).unwrap()).is_err());
    assert!(map.refuse("t", &[], Unreadable::Empty).is_err());
}
