//! Arrays that go to the device in one copy, and parts of a buffer.

use welm_kernels::{Device, Error, Staging};
use welm_tests::emulator::{Emulator, Options};

#[test]
fn arrays_go_in_one_copy() {
    let emulator = Emulator::new(Options::default());
    let device = Device::with_driver(emulator.clone());
    let bytes = Staging::bytes_of::<u32>(3) + Staging::bytes_of::<f32>(100) + Staging::bytes_of::<u32>(70);
    let mut staging = Staging::new(&device, bytes).unwrap();
    let mut fill = |ids: &[u32], angles: &[f32], table: &[u32]| {
        let before = emulator.uploads();
        staging.clear();
        let ids = staging.push(ids, 9, 3).unwrap();
        let angles = staging.push(angles, -1.0, 100).unwrap();
        let table = staging.push_last(table, 70).unwrap();
        staging.upload().unwrap();
        assert_eq!(emulator.uploads() - before, 1);
        (ids, angles, table)
    };
    let (ids, angles, table) = fill(&[5, 6], &[0.5; 99], &[1, 2]);
    assert_eq!(ids.to_vec().unwrap(), [5, 6, 9]);
    assert_eq!(angles.to_vec().unwrap(), [&[0.5; 99][..], &[-1.0]].concat());
    assert_eq!(table.to_vec().unwrap(), [&[1, 2][..], &[0; 68]].concat());
    // Filled again, the arrays have the same addresses, and bytes past the last array are unchanged.
    let places = [ids.ptr(), angles.ptr(), table.ptr()];
    drop((ids, angles, table));
    let (ids, angles, table) = fill(&[], &[], &[7]);
    assert_eq!([ids.ptr(), angles.ptr(), table.ptr()], places);
    assert_eq!((ids.to_vec().unwrap(), angles.to_vec().unwrap()), (vec![9; 3], vec![-1.0; 100]));
    assert_eq!(table.to_vec().unwrap(), [&[7, 2][..], &[0; 68]].concat());

    for full in [staging.push(&[1u32, 2], 0, 1), staging.push(&[0u32], 0, 1), staging.push_last(&[0u32], 1)] {
        assert!(matches!(full, Err(Error::Shape { .. })), "{full:?}");
    }
    // The memory is freed with the last array.
    drop((staging, ids, angles));
    assert_eq!(emulator.used_bytes(), bytes as u64);
    drop(table);
    assert_eq!(emulator.used_bytes(), 0);
}

#[test]
fn a_part_lies_within_its_buffer() {
    let device = Emulator::device((8, 0));
    let whole = device.upload(&[1u32, 2, 3, 4]).unwrap();
    let mut part = whole.part::<u32>(4, 2).unwrap();
    assert_eq!((part.len(), part.to_vec().unwrap()), (2, vec![2, 3]));
    part.write(1, &[7]).unwrap();
    assert_eq!(whole.to_vec().unwrap(), [1, 2, 7, 4]);
    assert_eq!(part.part::<u8>(4, 1).unwrap().to_vec().unwrap(), [7]);
    assert!(whole.part::<u32>(16, 0).unwrap().is_empty());
    assert!(part.write(1, &[0, 0]).is_err(), "past the part");
    let outside = [whole.part::<u32>(2, 1), whole.part(8, 3), whole.part(16, 1), part.part(0, 3)];
    for wrong in outside.into_iter().chain([whole.part(4, usize::MAX), whole.part(usize::MAX - 3, 1)]) {
        assert!(matches!(wrong, Err(Error::Shape { .. })), "{wrong:?}");
    }
}
