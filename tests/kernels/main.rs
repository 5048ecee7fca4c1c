//! Every kernel against the formula, through the launchers that everybody uses: on the emulator here, on a GPU
//! with `WELM_TEST_GPU=<ordinal>` (and the feature `gpu`). The checks are the same.

mod attention;
mod device;
mod faults;
mod gemm;
mod norm;
mod random;
mod rope;
mod sample;

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
    gemm_rows_sm80, (8, 0), gemm::few_and_tiles;
    gemm_weights_alone_sm80, (8, 0), gemm::weights_alone;
    gemm_shapes_sm80, (8, 0), gemm::shapes;
    gemm_functions_sm80, (8, 0), gemm::functions;
    gemm_int8_sm80, (8, 0), gemm::int8_activations;
    gemm_rotated_int8_sm80, (8, 0), gemm::rotated_int8;
    gemm_largest_sum_sm80, (8, 0), gemm::largest_sum;
    gemm_rotated_is_the_same_sm80, (8, 0), gemm::rotated_is_the_same;
    gemm_errors_sm80, (8, 0), gemm::errors;
    gemm_rows_sm90, (9, 0), gemm::few_and_tiles;
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

#[test]
fn gemm_rotated_weights() {
    gemm::rotated_weights();
}

/// The same on a real device, which `WELM_TEST_GPU` names; `benches/gpu/run` runs them one at a time.
#[cfg(feature = "gpu")]
mod gpu {
    use welm_kernels::Device;

    macro_rules! on_gpu {
        ($($name:ident;)*) => {$(
            #[test]
            #[ignore = "needs a GPU"]
            fn $name() {
                let ordinal = std::env::var("WELM_TEST_GPU").expect("WELM_TEST_GPU is the number of a device");
                let device = Device::open(ordinal.parse().expect("a number")).expect("the device opens");
                println!("{device:?}");
                crate::$name::check(&device);
            }
        )*};
    }

    on_gpu! {
        attention;
        gemm;
        norm;
        rope;
        sample;
    }
}
