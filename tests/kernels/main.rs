//! Tests every kernel against its formula, through the public launchers. The checks run on the emulator. With the
//! feature `gpu`, which compiles device code, and `WELM_TEST_GPU=<ordinal>` the same checks run on a GPU.

mod attention;
mod device;
mod faults;
mod gemm;
mod norm;
mod random;
mod rope;
mod sample;
mod staging;
mod sums;

use welm_kernels::Device;
use welm_tests::emulator::Emulator;

/// A test of one kernel file on one kind of device.
macro_rules! on_devices {
    ($($name:ident, $capability:expr, $check:path;)*) => {$(
        #[test]
        fn $name() {
            $check(&Emulator::device($capability));
        }
    )*};
}

on_devices! {
    gemm_few_sm80, (8, 0), few;
    gemm_rows_sm80, (8, 0), gemm::few_and_tiles;
    gemm_split_along_k_sm80, (8, 0), gemm::split_along_k;
    gemm_weights_alone_sm80, (8, 0), gemm::weights_alone;
    gemm_shapes_sm80, (8, 0), gemm::shapes;
    gemm_functions_sm80, (8, 0), gemm::functions;
    gemm_int8_sm80, (8, 0), gemm::int8_activations;
    gemm_rotated_int8_sm80, (8, 0), gemm::rotated_int8;
    gemm_largest_sum_sm80, (8, 0), gemm::largest_sum;
    gemm_rotated_is_the_same_sm80, (8, 0), gemm::rotated_is_the_same;
    gemm_errors_sm80, (8, 0), gemm::errors;
    gemm_rows_sm90, (9, 0), gemm::few_and_tiles;
    gemm_tiles_by_waves_sm90, (9, 0), gemm::tiles_by_waves;
    gemm_weights_alone_sm90, (9, 0), gemm::weights_alone;
    gemm_shapes_sm90, (9, 0), gemm::shapes;
    gemm_functions_sm90, (9, 0), gemm::functions;
    gemm_int8_sm90, (9, 0), gemm::int8_activations;
    gemm_rotated_int8_sm90, (9, 0), gemm::rotated_int8;
    gemm_rotated_is_the_same_sm90, (9, 0), gemm::rotated_is_the_same;
    norm_sm80, (8, 0), norm::check;
    rope_sm80, (8, 0), rope::check;
    sample_sm80, (8, 0), sample::check;
    attention_prefill_sm80, (8, 0), attention::prefill;
    attention_decode_sm80, (8, 0), attention::decode;
    attention_errors_sm80, (8, 0), attention::errors;
    attention_prefill_sm90, (9, 0), attention::prefill;
    attention_errors_sm90, (9, 0), attention::errors;
}

fn few(device: &Device) {
    gemm::KINDS.iter().for_each(|&kind| gemm::few(device, kind));
}

#[test]
fn gemm_rotated_weights() {
    gemm::rotated_weights();
}

/// The same on a real device, which `WELM_TEST_GPU` names; `benches/gpu/run` runs them one at a time.
mod gpu {
    use welm_kernels::Device;

    use crate::gemm::Kind::{Bf16, Int8, Rotated};
    use crate::{attention, gemm, norm, rope, sample};

    /// The device for a test; none if the test needs another kind of device. The name of the test says what it needs.
    ///
    /// - `..._no_hopper`: the kernels for all devices, even on Hopper. It needs `WELM_NO_HOPPER=1`.
    /// - `..._ptx`: the same kernels from PTX, as a device without machine code gets them. It needs
    ///   `CUDA_FORCE_PTX_JIT=1`, too.
    /// - `..._sm90_...`: the kernels of Hopper.
    fn device(test: &str) -> Option<Device> {
        let ordinal = std::env::var("WELM_TEST_GPU").expect("WELM_TEST_GPU is the number of a device");
        let device = Device::open(ordinal.parse().expect("a number")).expect("the device opens");
        println!("{device:?}");
        let ptx = test.ends_with("_ptx");
        if ptx || test.ends_with("_no_hopper") {
            assert!(!device.is_hopper(), "WELM_NO_HOPPER=1 is not set, or has no effect");
        }
        let forced = std::env::var("CUDA_FORCE_PTX_JIT").is_ok_and(|value| value == "1");
        assert_eq!(forced, ptx, "CUDA_FORCE_PTX_JIT");
        if test.contains("_sm90_") && !device.is_hopper() {
            println!("needs a device of capability 9.0");
            return None;
        }
        Some(device)
    }

    /// Lines are `name: checks`. The harness runs tests in the order of their names, so the numbers give the order.
    macro_rules! on_gpu {
        ($($name:ident: $check:expr;)*) => {
            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $name() {
                    let check: fn(&Device) = $check;
                    if let Some(device) = device(stringify!($name)) {
                        check(&device);
                    }
                }
            )*

            const ORDER: &[&str] = &[$(stringify!($name)),*];
        };
    }

    // The likeliest to work come first: plain kernels, then mma.sync, then wgmma and bulk copies. Last are the values
    // of head_dim that are not multiples of 64, the columns of a wgmma atom.
    on_gpu! {
        s01_norm_formulas: norm::formulas;
        s02_norm_rows: |d| { norm::magnitudes(d); norm::neighbours(d); norm::ranges(d) };
        s03_norm_sums: |d| { norm::widths(d); norm::summation(d); norm::added(d) };
        s04_norm_conversions: |d| { norm::conversions(d); norm::rotation(d) };
        s05_norm_embedding: |d| { norm::embedding(d); norm::errors(d) };
        s06_rope: rope::check;
        s07_sample_top_k: |d| { sample::sizes(d); sample::neighbours(d); sample::odd_values(d) };
        s08_sample_draws: |d| { sample::soft_caps(d); sample::draws(d); sample::edges(d); sample::errors(d) };
        s10_few_int8: |d| gemm::few(d, Int8);
        s11_few_bf16: |d| gemm::few(d, Bf16);
        s12_few_rotated: |d| gemm::few(d, Rotated);
        s20_tiles_int8_no_hopper: |d| sums(d, Int8);
        s21_tiles_bf16_no_hopper: |d| sums(d, Bf16);
        s22_tiles_rotated_no_hopper: |d| sums(d, Rotated);
        s23_tiles_w8a8_no_hopper: gemm::int8_activations;
        s24_tiles_r8a8_no_hopper: |d| { gemm::rotated_int8(d); gemm::largest_sum(d) };
        s25_epilogues_int8_no_hopper: |d| epilogues(d, Int8);
        s26_epilogues_bf16_no_hopper: |d| epilogues(d, Bf16);
        s27_epilogues_rotated_no_hopper: |d| epilogues(d, Rotated);
        s28_rotated_no_hopper: gemm::rotated_is_the_same;
        s29_gemm_errors_no_hopper: gemm::errors;
        s30_decode_128: |d| attention::decode_of(d, 128);
        s31_decode_64: |d| attention::decode_of(d, 64);
        s32_decode_80: |d| attention::decode_of(d, 80);
        s33_decode_96: |d| attention::decode_of(d, 96);
        s40_prefill_128_no_hopper: |d| attention::prefill_of(d, 128);
        s41_prefill_64_no_hopper: |d| attention::prefill_of(d, 64);
        s42_prefill_80_no_hopper: |d| attention::prefill_of(d, 80);
        s43_prefill_96_no_hopper: |d| attention::prefill_of(d, 96);
        s44_attention_errors_no_hopper: attention::errors;
        s50_sm90_int8: |d| sums(d, Int8);
        s51_sm90_bf16: |d| sums(d, Bf16);
        s52_sm90_w8a8: gemm::int8_activations;
        s53_sm90_r8a8: gemm::rotated_int8;
        s54_sm90_epilogues_int8: |d| epilogues(d, Int8);
        s55_sm90_epilogues_bf16: |d| epilogues(d, Bf16);
        s56_sm90_rotated: gemm::rotated_is_the_same;
        s57_sm90_tiles_by_waves: gemm::tiles_by_waves;
        s60_sm90_prefill_128: |d| attention::prefill_of(d, 128);
        s61_sm90_prefill_64: |d| attention::prefill_of(d, 64);
        s62_sm90_prefill_80: |d| attention::prefill_of(d, 80);
        s63_sm90_prefill_96: |d| attention::prefill_of(d, 96);
        s64_sm90_attention_errors: attention::errors;
        s70_norm_ptx: norm::formulas;
        s71_rope_ptx: rope::check;
        s72_sample_ptx: sample::sizes;
        s73_few_int8_ptx: |d| gemm::few(d, Int8);
        s74_tiles_int8_ptx: |d| sums(d, Int8);
        s75_decode_64_ptx: |d| attention::decode_of(d, 64);
        s76_prefill_128_ptx: |d| attention::prefill_of(d, 128);
    }

    fn sums(device: &Device, kind: gemm::Kind) {
        gemm::few_and_tiles_of(device, &[kind]);
        gemm::split_along_k_of(device, &[kind]);
        gemm::weights_alone_of(device, &[kind]);
    }

    fn epilogues(device: &Device, kind: gemm::Kind) {
        gemm::shapes_of(device, &[kind]);
        gemm::functions_of(device, &[kind]);
    }

    #[test]
    fn the_order_is_that_of_the_table() {
        assert!(ORDER.is_sorted(), "{ORDER:?}");
    }
}
