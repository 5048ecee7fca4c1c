//! How a thread rounds, and what traps it.
//!
//! A program can change both for a thread (`fesetround`, `feenableexcept`, `-ffast-math` of a library that it loads), and
//! threads that it starts then inherit the change. With another rounding a model's text would be another. A trap would
//! end the process, because attention computes infinity minus infinity on purpose.

/// Until it is dropped, this thread computes as usual: rounds to nearest, keeps denormal numbers, and has no traps.
pub(crate) struct Usual {
    before: Control,
}

#[cfg(target_arch = "x86_64")]
use x86::{Control, USUAL, control, set_control};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// The register MXCSR.
    pub(super) type Control = u32;
    /// All exceptions masked.
    pub(super) const USUAL: Control = 0x1f80;

    pub(super) fn control() -> Control {
        let mut value: Control = 0;
        // SAFETY: writes four bytes there.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
        value
    }

    pub(super) fn set_control(value: Control) {
        // SAFETY: reads four bytes, which `control` or this module made.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags, readonly))
        };
    }
}

#[cfg(target_arch = "aarch64")]
use arm::{Control, USUAL, control, set_control};

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::asm;

    /// The register FPCR.
    pub(super) type Control = u64;
    pub(super) const USUAL: Control = 0;

    pub(super) fn control() -> Control {
        let value: Control;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub(super) fn set_control(value: Control) {
        // SAFETY: a value of this register.
        unsafe { asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use other::{Control, USUAL, control, set_control};

/// Machines on which nothing is changed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod other {
    pub(super) type Control = ();
    pub(super) const USUAL: Control = ();
    pub(super) fn control() -> Control {}
    pub(super) fn set_control((): Control) {}
}

impl Usual {
    pub(crate) fn here() -> Self {
        let before = control();
        set_control(USUAL);
        Usual { before }
    }
}

impl Drop for Usual {
    fn drop(&mut self) {
        set_control(self.before);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::hint::black_box;

    use super::*;

    // A call, because the compiler does not know that the register changes a division. The nearest number is larger.
    #[inline(never)]
    fn third() -> f32 {
        black_box(1.0) / black_box(3.0)
    }

    #[test]
    fn a_thread_rounds_as_usual_and_then_as_before() {
        const DOWN: Control = USUAL | 0x2000;
        let usual = third();
        set_control(DOWN);
        let down = third();
        let inside = {
            let _usual = Usual::here();
            third()
        };
        let (after, left) = (third(), control());
        set_control(USUAL);
        assert!(down < usual);
        assert_eq!((inside, after), (usual, down));
        assert_eq!(left & !0x3f, DOWN); // the lowest bits note what happened
    }
}
