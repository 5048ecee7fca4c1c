//! Groups of values as int8.

use half::f16;
use welm_cpu::int8::quantize_group;
use welm_cpu::isa::GROUP;

#[test]
fn a_group_keeps_its_largest_value_and_rounds_the_rest() {
    let mut values = [0.0f32; GROUP];
    values[0] = 127.0;
    values[1] = -63.4;
    values[2] = 0.5; // tie, to even
    let mut q = [9; GROUP];
    let scale = quantize_group(&values, &mut q).unwrap();
    assert_eq!((scale.to_f32(), q[0], q[1], q[2], q[3]), (1.0, 127, -63, 0, 0));
    assert_eq!(quantize_group(&[0.0; GROUP], &mut q), Some(f16::ZERO));
    assert_eq!(q, [0; GROUP]);
    for bad in [f32::NAN, f32::INFINITY, 1e9] {
        assert!(quantize_group(&[bad; GROUP], &mut q).is_none(), "{bad}");
    }
    // Far below f16's normal range the scale is coarse, but no value is clipped by more than half a step.
    for tiny in [1e-4, 3e-6, 2e-5] {
        let scale = quantize_group(&[tiny; GROUP], &mut q).unwrap().to_f32();
        assert!((scale * f32::from(q[0]) - tiny).abs() <= 0.5 * scale, "{tiny}");
    }
}
