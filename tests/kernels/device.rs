//! Checks that concern no single kernel: a Hopper device without its own kernels, and waits that never end.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use welm_kernels::Device;
use welm_kernels::driver::{Driver, Grid, Kernel};
use welm_tests::emulator::compile::compile;
use welm_tests::emulator::{Emulator, Options, Used};

use crate::{attention, gemm};

/// How a check uses a device of a capability, with a hash of everything that it reads back.
fn used(capability: (u32, u32), as_it_is: bool, check: fn(&Device)) -> Used {
    let emulator = Emulator::new(Options { capability, ..Options::default() });
    let device = Device::with_driver(emulator.clone());
    let device = if as_it_is { device } else { device.without_hopper() };
    assert_eq!(device.info().capability, capability);
    assert_eq!(device.is_hopper(), as_it_is && capability == (9, 0));
    check(&device);
    emulator.used()
}

/// A Hopper device without its own kernels uses the kernels of other devices, gives their bits, and makes no tensor
/// map.
fn as_any_other(check: fn(&Device)) {
    let own = used((9, 0), true, check);
    assert!(own.tensor_maps > 0 && own.kernels.iter().any(|name| name.contains("_sm90")), "{own:?}");
    let other = used((8, 0), true, check);
    assert!(other.tensor_maps == 0 && !other.kernels.is_empty(), "{other:?}");
    assert_eq!(used((9, 0), false, check), other);
    assert_eq!(used((8, 0), false, check), other);
}

#[test]
fn without_hopper_products_of_bf16() {
    as_any_other(gemm::few_and_tiles);
}

#[test]
fn without_hopper_products_of_int8() {
    as_any_other(gemm::int8_activations);
}

#[test]
fn without_hopper_rotated_products() {
    as_any_other(gemm::rotated_int8);
}

#[test]
fn without_hopper_prefill() {
    as_any_other(attention::prefill_windows);
}

/// A block of 64 threads that waits; the mode says what for.
const WAITS: &str = "
    #include <ptx.cuh>
    struct Params { uint32_t arrivals, bytes, threads, unused; };
    KERNEL(waits_sm90, Params, 64, 1) {
        ptx::Barrier *b = (ptx::Barrier *)ptx::shared();
        if (threadIdx.x == 0) {
            ptx::barrier_init(b, 2);
            ptx::barrier_init_fence();
        }
        ptx::sync_block();
        if (threadIdx.x == 0 && p.bytes) ptx::barrier_expect(b, p.bytes);
        else if (threadIdx.x < p.arrivals) ptx::barrier_arrive(b);
        ptx::barrier_wait(b, 0);
        if (threadIdx.x < p.threads) ptx::sync_named(1, 64);
    }
";

#[test]
fn waits_that_never_end_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("waits.cu"), folder.path().join("waits.so"));
    fs::write(&source, WAITS).unwrap();
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator");
    compile(&source, folder.path(), &emulator, &library, "g").unwrap();
    for seed in 1..9 {
        let libraries = HashMap::from([("waits".to_owned(), library.clone())]);
        let options = Options { capability: (9, 0), seed, libraries, ..Options::default() };
        let emulator = Emulator::new(options);
        let launch = |arrivals: u32, bytes: u32, threads: u32| {
            let kernel = Kernel { file: "waits", name: "waits_sm90" };
            let grid = Grid { blocks: [2, 1, 1], threads: 64, shared_bytes: 64 };
            let params = [arrivals, bytes, threads, 0].map(u32::to_ne_bytes).concat();
            // SAFETY: the kernel's parameters, in which there is no address.
            unsafe { emulator.launch(kernel, grid, &params) }.map_err(|error| error.to_string())
        };
        assert_eq!(launch(2, 0, 64), Ok(()));
        for (arrivals, bytes, threads, what) in [
            (1, 0, 64, "deadlock: waits for an mbarrier"),
            (0, 0, 64, "deadlock: waits for an mbarrier"),
            (2, 16, 64, "deadlock: waits for an mbarrier"),
            (2, 0, 32, "deadlock: waits for barrier 1"),
        ] {
            let error = launch(arrivals, bytes, threads).unwrap_err();
            assert!(error.contains(what), "{arrivals} arrivals, {bytes} bytes, {threads} threads: {error}");
        }
    }
}
