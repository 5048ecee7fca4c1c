//! What the KV cache stores.

use half::f16;
use welm_cpu::cache::CacheElement;
use welm_cpu::isa::{Isa, Kernel, LANES, Simd};

struct Store([f32; LANES]);

impl Kernel for Store {
    type Out = [f16; LANES];
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f16; LANES] {
        let mut stored = [f16::ZERO; LANES];
        // SAFETY: both arrays have 16 values.
        unsafe { <f16 as CacheElement>::store::<S>(stored.as_mut_ptr(), S::load(self.0.as_ptr())) };
        stored
    }
}

#[test]
fn what_f16_cannot_hold_becomes_nan_with_every_instruction_set() {
    let held = [65_504.0, -65_504.0, 1.000_488_3, -6e-8, 0.0, 1e-9, -3.25, 2.5e-5];
    let not_held =
        [65_520.0, -65_520.0, 65_536.0, 1e9, -f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let values: [f32; LANES] = std::array::from_fn(|i| [held, not_held][i / 8][i % 8]);
    for isa in Isa::all() {
        // SAFETY: the machine has these instructions.
        let stored = unsafe { isa.dispatch(Store(values)) };
        for (i, &value) in values.iter().enumerate() {
            let want = if i < 8 { f16::from_f32(value) } else { f16::NAN };
            assert!(stored[i] == want || (stored[i].is_nan() && want.is_nan()), "{isa:?}: {value}");
        }
    }
}
