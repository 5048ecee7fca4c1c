//! x86-64: AVX2 holds the sixteen lanes in two registers, AVX-512 in one. AVX-VNNI is AVX2 with `vpdpbusd`.
//!
//! Code with intrinsics uses loops instead of closures. A closure that the compiler does not inline is compiled without
//! the caller's instruction set, and then each intrinsic in it is a function call.

mod avx2;
mod avx512;
mod dot;

use crate::isa::Kernel;
use avx2::Avx2;
use avx512::Avx512Vnni;
use dot::{Evex, Nibbles, Vex};

/// Runs a kernel with AVX2.
///
/// # Safety
/// The CPU has avx2, fma and f16c; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` asks for.
    unsafe { kernel.run::<Avx2<Nibbles>>() }
}

/// Runs a kernel with AVX2 and AVX-VNNI.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_avxvnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` and `Vex` ask for.
    unsafe { kernel.run::<Avx2<Vex>>() }
}

/// Runs a kernel with AVX2, and `vpdpbusd` in the encoding of AVX-512.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avxvnni_evex<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` and `Evex` ask for.
    unsafe { kernel.run::<Avx2<Evex>>() }
}

/// Runs a kernel with AVX-512 and its VNNI.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512vnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx512Vnni` asks for.
    unsafe { kernel.run::<Avx512Vnni>() }
}
