//! A writer of GGUF files, right or wrong, and what the reader says of them.

use super::super::tests::{damage, mapped};
use super::*;

/// Writes small files, right or wrong.
#[derive(Default, Clone)]
pub(crate) struct Writer {
    n_keys: u64,
    keys: Vec<u8>,
    n_tensors: u64,
    table: Vec<u8>,
    data: Vec<u8>,
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// The bytes of an array value of `n` elements.
pub(crate) fn array(type_id: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [&type_id.to_le_bytes(), &n.to_le_bytes()[..], elements].concat()
}

impl Writer {
    pub(crate) fn key(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        self.n_keys += 1;
        self.keys.extend([&string(key), &type_id.to_le_bytes()[..], value].concat());
        self
    }

    /// A line of the table; `dims` innermost first, as in the file.
    pub(crate) fn info(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        self.n_tensors += 1;
        self.table.extend([&string(name), &(dims.len() as u32).to_le_bytes()[..]].concat());
        self.table.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        self.table.extend([&type_id.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        self
    }

    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, bytes: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        self.info(name, dims, type_id, offset)
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &self.n_tensors.to_le_bytes()].concat();
        file.extend([&self.n_keys.to_le_bytes(), &self.keys[..], &self.table].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }

    pub(crate) fn open(&self) -> Result<Gguf> {
        parse(&self.finish())
    }

    fn error(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn parse(bytes: &[u8]) -> Result<Gguf> {
    Gguf::parse(Path::new("test.gguf"), &mapped(bytes))
}

#[test]
fn reads_tensors_of_every_type() {
    let q8 = [&[0x00, 0x38], &[2; 32][..]].concat(); // d = 0.5
    let q4_0 = [&[0x00, 0x38], &[0x1f; 16][..]].concat();
    let q4_1 = [&[0x00, 0x38, 0x00, 0x3c], &[0x1f; 16][..]].concat(); // m = 1
    let gguf = Writer::default()
        .tensor("f32", &[3, 2], 0, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat())
        .tensor("f16", &[1], 1, &[0x00, 0xc0])
        .tensor("bf16", &[1, 2], 30, &[0x80, 0x3f, 0x00, 0x40])
        .tensor("q8_0", &[32, 1], 8, &q8)
        .tensor("q4_0", &[32], 2, &q4_0)
        .tensor("q4_1", &[32], 3, &q4_1)
        .open()
        .unwrap();
    let get = |name| gguf.tensors.get(name).unwrap();
    let mut row = [0.0; 3];
    get("f32").row_f32(1, &mut row);
    assert_eq!((&get("f32").shape[..], row), (&[2, 3][..], [4.0, 5.0, 6.0]));
    assert_eq!(get("f16").to_f32(), [-2.0]);
    assert_eq!((&get("bf16").shape[..], get("bf16").to_f32()), (&[2, 1][..], vec![1.0, 2.0]));
    assert_eq!((&get("q8_0").shape[..], get("q8_0").to_f32()), (&[1, 32][..], vec![1.0; 32]));
    assert_eq!(get("q4_0").to_f32(), [[3.5; 16], [-3.5; 16]].concat());
    assert_eq!(get("q4_1").to_f32(), [[8.5; 16], [1.5; 16]].concat());
    assert_eq!(gguf.tensors.names().count(), 6);
    assert_eq!(gguf.tensors.total_bytes(), 24 + 2 + 4 + 34 + 18 + 20);
}

fn all_keys() -> Writer {
    Writer::default()
        .key("u8", 0, &[200])
        .key("i8", 1, &[0xfe])
        .key("u16", 2, &[1, 2])
        .key("i16", 3, &[0xff, 0xff])
        .key("u32", 4, &[0, 0, 0, 0x80])
        .key("i32", 5, &[7, 0, 0, 0])
        .key("f32", 6, &0.1f32.to_le_bytes())
        .key("bool", 7, &[1])
        .key("str", 8, &string("微信"))
        .key("u64", 10, &u64::MAX.to_le_bytes())
        .key("i64", 11, &[0xff; 8])
        .key("f64", 12, &1e-5f64.to_le_bytes())
        .key("strs", 9, &array(8, 2, &[string("a"), string("")].concat()))
        .key("ints", 9, &array(5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]))
        .key("bytes", 9, &array(0, 3, &[1, 2, 3]))
        .key("huge", 9, &array(10, 1, &[0xff; 8]))
        .key("floats", 9, &array(6, 1, &(-0.5f32).to_le_bytes()))
        .key("bools", 9, &array(7, 2, &[0, 1]))
        .key("nested", 9, &array(9, 2, &[array(0, 1, &[5]), array(8, 0, &[])].concat()))
}

#[test]
fn reads_values_of_every_type() {
    let gguf = all_keys().open().unwrap();
    assert_eq!(gguf.u64("u8").unwrap(), 200);
    assert_eq!(gguf.u64("u16").unwrap(), 0x201);
    assert_eq!(gguf.u64("u32").unwrap(), 1 << 31);
    assert_eq!(gguf.u64("i32").unwrap(), 7);
    assert_eq!(gguf.opt_u64("u64").unwrap(), Some(u64::MAX));
    assert_eq!(gguf.metadata["i8"], Value::Signed(-2));
    assert_eq!(gguf.metadata["i16"], Value::Signed(-1));
    assert_eq!(gguf.opt_f32("f32").unwrap(), Some(0.1));
    assert_eq!(gguf.opt_f32("f64").unwrap(), Some(1e-5));
    assert_eq!(gguf.opt_bool("bool").unwrap(), Some(true));
    assert_eq!(gguf.str("str").unwrap(), "微信");
    assert_eq!(gguf.str_array("strs").unwrap(), ["a", ""]);
    assert_eq!(gguf.opt_i64_array("ints").unwrap().unwrap(), [1, -1]);
    assert_eq!(gguf.opt_i64_array("bytes").unwrap().unwrap(), [1, 2, 3]);
    assert_eq!(gguf.opt_strs("strs").unwrap().unwrap(), ["a", ""]);
    for (key, shown) in [
        ("floats", "an array of 1 floats"),
        ("bools", "an array of 2 booleans"),
        ("nested", "an array of 2 arrays"),
        ("str", "a string"),
    ] {
        assert_eq!(gguf.metadata[key].to_string(), shown);
    }
    assert!(gguf.opt_str("absent").unwrap().is_none());
    assert!(gguf.opt_strs("absent").unwrap().is_none());
    for (key, json) in [
        ("u8", serde_json::json!(200)),
        ("i16", serde_json::json!(-1)),
        ("f64", serde_json::json!(1e-5)),
        ("bool", serde_json::json!(true)),
        ("str", serde_json::json!("微信")),
    ] {
        assert_eq!(gguf.to_json(&gguf.metadata[key]), Some(json));
    }
    assert_eq!(gguf.to_json(&gguf.metadata["bools"]), None);
}

#[test]
fn keys_that_nobody_asked_for_are_known() {
    let gguf = Writer::default().key("a", 0, &[1]).key("b", 0, &[2]).key("c", 0, &[3]).open().unwrap();
    assert_eq!(gguf.u64("b").unwrap(), 2);
    gguf.mark_read("c");
    assert_eq!(gguf.unread().collect::<Vec<_>>(), [("a", &Value::Unsigned(1))]);
}

#[test]
fn wrong_types_name_the_key() {
    let gguf = all_keys().open().unwrap();
    for (error, message) in [
        (gguf.str("u8").err(), "`u8`: expected a string, got 200"),
        (gguf.str("absent").err(), "`absent`: missing from the file, expected a string"),
        (gguf.u64("absent").err(), "`absent`: missing from the file, expected an integer"),
        (gguf.u64("i64").err(), "`i64`: expected an integer, not negative, got -1"),
        (gguf.opt_u64("ints").err(), "got an array of 2 signed integers"),
        (gguf.opt_f32("str").err(), "`str`: expected a float, got a string"),
        (gguf.opt_bool("f64").err(), "`f64`: expected a boolean, got 1e-5"),
        (gguf.str_array("absent").err(), "missing from the file, expected an array of strings"),
        (gguf.str_array("bools").err(), "expected an array of strings, got an array of 2 booleans"),
        (gguf.opt_i64_array("huge").err(), "got an array of 1 unsigned integers"),
        (gguf.opt_i64_array("nested").err(), "below 2^63, got an array of 2 arrays"),
    ] {
        let error = error.unwrap();
        assert!(matches!(error, Error::Config { .. }));
        assert!(error.to_string().ends_with(message), "{error}");
    }
}

#[test]
fn survives_any_damage() {
    let file = all_keys()
        .key("general.alignment", 4, &32u32.to_le_bytes())
        .tensor("a", &[2, 2], 0, &[0x3f; 16])
        .tensor("b", &[32, 1], 2, &[0x11; 18])
        .finish();
    damage(&file, |map| Gguf::parse(Path::new("test.gguf"), &map).map(|gguf| gguf.tensors));
}

#[test]
fn heads_are_checked() {
    let good = Writer::default().finish();
    parse(&good).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&file).map(|_| ()).map_err(|e| e.to_string())
    };
    with(4, &2u32.to_le_bytes()).unwrap();
    assert!(with(0, b"ggjt").unwrap_err().contains("expected the magic number GGUF"));
    assert!(with(4, &1u32.to_le_bytes()).unwrap_err().ends_with("got version 1"));
    assert!(with(4, &3u32.to_be_bytes()).unwrap_err().ends_with("got a big-endian file of version 3"));
    // Counts that only a file of their size could have.
    for n in [1, 1 << 40, u64::MAX] {
        assert!(with(8, &u64::to_le_bytes(n)).is_err());
        assert!(with(16, &u64::to_le_bytes(n)).is_err());
    }
}

#[test]
fn huge_lengths_are_refused() {
    for n in [1000, 1 << 32, 1 << 61, u64::MAX - 15, u64::MAX] {
        for type_id in 0..13 {
            let error = Writer::default().key("k", 9, &array(type_id, n, &[])).error();
            assert!(error.contains("are left"), "{error}");
        }
        assert!(Writer::default().key("k", 8, &n.to_le_bytes()).error().contains("k takes"));
        let long_key = Writer { n_keys: 1, keys: n.to_le_bytes().to_vec(), ..Writer::default() };
        assert!(long_key.error().contains("a key takes"));
        let long_name = Writer { n_tensors: 1, table: n.to_le_bytes().to_vec(), ..Writer::default() };
        assert!(long_name.error().contains("a tensor's name takes"));
    }
}

#[test]
fn bad_values_are_refused() {
    let error = |type_id, value: &[u8]| Writer::default().key("k", type_id, value).error();
    assert!(error(13, &[0; 8]).contains("`k`: expected a type of 0 to 12, got 13"));
    assert!(error(9, &array(13, 0, &[])).contains("got 13"));
    assert!(error(7, &[2]).contains("`k`: expected a boolean of 0 or 1, got 2"));
    let other = [1, 0, 0, 0, 0, 0, 0, 0, 0xff];
    let keys = Writer { n_keys: 1, keys: other.to_vec(), ..Writer::default() };
    assert!(keys.error().contains("a key is not UTF-8"));
    // In a title it does not matter.
    let title = Writer::default().key("k", 8, &other).key("ks", 9, &array(8, 1, &other)).open().unwrap();
    let of = |r: Result<()>| r.unwrap_err().to_string();
    let want =
        "config setting `k`: expected UTF-8, got other bytes: invalid utf-8 sequence of 1 bytes from index 0";
    assert_eq!(of(title.opt_str("k").map(drop)), want);
    assert!(of(title.opt_strs("ks").map(drop)).contains("`ks`: expected UTF-8, got other bytes"));
    let nest = |n: usize| [array(9, 1, &[]).repeat(n - 1), array(0, 0, &[])].concat();
    Writer::default().key("k", 9, &nest(4)).open().unwrap();
    assert!(error(9, &nest(5)).contains("`k`: arrays are nested deeper than 4"));
    assert!(error(9, &nest(100_000)).contains("`k`: arrays are nested deeper than 4"));
    let twice = Writer::default().key("k", 0, &[1]).key("k", 0, &[1]);
    assert!(twice.error().ends_with("key `k` appears twice"));
}

#[test]
fn alignment_is_followed() {
    let with = |n: u32| Writer::default().key("general.alignment", 4, &n.to_le_bytes());
    for n in [0, 3, 48] {
        let error = with(n).error();
        assert!(error.contains(&format!("expected a power of two, got {n}")), "{error}");
    }
    with(1 << 31).open().unwrap();
    assert!(with(1 << 31).tensor("t", &[1], 0, &[0; 4]).error().contains("does not fit"));
    let mut writer = with(64).info("t", &[4], 0, 0);
    writer.data = [[1.0f32; 8], [2.0; 8], [3.0; 8]].concat().iter().flat_map(|x| x.to_le_bytes()).collect();
    let head = writer.finish().len() - writer.data.len();
    assert_eq!(head % 64, 32, "or the test shows nothing");
    assert_eq!(writer.open().unwrap().tensors.get("t").unwrap().to_f32(), [2.0; 4]);
}

#[test]
fn tensor_table_is_checked() {
    let error = |dims: &[u64], type_id, offset| {
        let mut writer = Writer::default().info("t", dims, type_id, offset);
        writer.data = vec![0; 128];
        let error = writer.error();
        assert!(error.starts_with("tensor `t`: "), "{error}");
        error
    };
    assert!(error(&[], 0, 0).ends_with("expected 1 to 4 dimensions, got 0"));
    assert!(error(&[1; 5], 0, 0).ends_with("expected 1 to 4 dimensions, got 5"));
    assert!(error(&[31, 2], 8, 0).contains("Q8_0 needs rows of a multiple of 32 elements"));
    assert!(error(&[4], 0, 8).ends_with("expected an offset that is a multiple of 32, got 8"));
    assert!(error(&[1], 0, 128).contains("does not fit"));
    assert!(error(&[1], 0, u64::MAX - 31).contains("does not fit"));
    assert!(error(&[33], 0, 0).contains("does not fit"));
    assert!(error(&[u64::MAX], 0, 0).contains("does not fit"));
    assert!(error(&[1 << 32, 1 << 32], 0, 0).contains("does not fit"));
    assert!(error(&[1 << 31; 4], 0, 0).contains("does not fit"));
}

#[test]
fn a_tensor_that_cannot_be_read_is_an_error_of_who_reads_it() {
    let error = |dims: &[u64], type_id| {
        let gguf =
            Writer::default().info("t", dims, type_id, 0).tensor("u", &[1], 0, &[0; 4]).open().unwrap();
        assert_eq!(gguf.tensors.get("u").unwrap().to_f32(), [0.0]);
        gguf.tensors.get("t").unwrap_err().to_string()
    };
    assert_eq!(error(&[4, 0], 0), "tensor `t`: shape (0, 4) holds no element");
    let supported = format!("is not supported; {} are", StoredType::of_weights(true));
    assert!(error(&[256], 16).ends_with(&format!("type IQ2_XXS {supported}")));
    assert!(error(&[256], 34).ends_with(&format!("type TQ1_0 {supported}")));
    assert!(error(&[256], 36).ends_with(&format!("type number 36 {supported}")));
    assert!(error(&[256], 77).ends_with(&format!("type number 77 {supported}")));
}

#[test]
fn counts_have_limits() {
    let keys = Writer { n_keys: MAX_KEYS + 1, ..Writer::default() }.error();
    assert!(keys.ends_with("expected at most 65536 keys, got 65537"), "{keys}");
    let tensors = Writer { n_tensors: u64::MAX, ..Writer::default() }.error();
    assert!(tensors.contains("expected at most 131072 tensors, got 18446744073709551615"), "{tensors}");
}

#[test]
fn tensors_share_neither_names_nor_bytes() {
    let mut writer = Writer::default().info("a", &[16], 0, 0).info("b", &[8], 0, 32);
    writer.data = vec![0; 64];
    assert_eq!(writer.error(), "tensor `b`: overlaps tensor `a`");
    let twice = Writer::default().tensor("a", &[8], 0, &[0; 32]).tensor("a", &[8], 0, &[0; 32]);
    assert_eq!(twice.error(), "tensor `a`: the model holds it twice");
}

/// What nobody asks for may be long.
#[test]
fn long_values_are_refused_before_they_are_copied() {
    let long = vec![b'a'; MAX_TEXT + 1];
    let text = [&(long.len() as u64).to_le_bytes()[..], &long].concat();
    let gguf = Writer::default().key("a", 8, &text).open().unwrap();
    assert_eq!(gguf.to_json(gguf.keys().next().unwrap().1), None);
    let error = gguf.str("a").unwrap_err().to_string();
    assert!(error.contains("`a`: expected at most 16777216 bytes, got 16777217"), "{error}");
    assert_eq!(at_most("a", b"12345", 5).unwrap(), b"12345");
    let error = at_most("a", b"12345", 4).unwrap_err().to_string();
    assert!(error.contains("`a`: expected at most 4 bytes, got 5"), "{error}");
}

#[test]
fn opens_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    assert!(matches!(Gguf::open(&path), Err(Error::Io { .. })));
    std::fs::write(&path, all_keys().finish()).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().metadata.len(), 19);
}
