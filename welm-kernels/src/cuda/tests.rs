//! The driver with a device, if there is one, and with the libcuda of `tests/libcuda.c`.

use super::*;
use crate::device::{Device, NO_HOPPER};
use crate::sample::argmax;

const ARGMAX: Kernel = Kernel { file: "sample", name: "argmax" };

#[test]
fn opens_a_device_or_says_why_not() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(Error::NoDevice(reason)) => {
            let known = ["libcuda", "cuInit", "device 0", "capability", "the driver is of CUDA"];
            assert!(known.iter().any(|part| reason.contains(part)), "{reason}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(device.info().capability >= (8, 0) && device.free_bytes().unwrap() > 0);
    let logits = device.upload(&[0.0f32, 2.0, 1.0, 5.0, -1.0, 4.0]).unwrap(); // (2, 3)
    let mut tokens = device.zeros::<u32>(2).unwrap();
    argmax(&device, &logits, 2, 3, &mut tokens).unwrap();
    assert_eq!(tokens.to_vec().unwrap(), [1, 0]);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    for ordinal in [1000, i32::MAX as usize + 1, usize::MAX] {
        let error = Device::open(ordinal).unwrap_err();
        assert!(matches!(error, Error::NoDevice(_)), "{error}");
    }
}

#[test]
fn a_switch_is_on_off_or_an_error() {
    let switch = |value: &str| crate::device::switch("WELM_SWITCH", Some(value.into()));
    assert_eq!(crate::device::switch("WELM_SWITCH", None), Ok(false));
    assert_eq!([switch(""), switch("0"), switch("1")], [Ok(false), Ok(false), Ok(true)]);
    for value in ["2", "true", "yes", " 1", "01"] {
        let error = switch(value).unwrap_err();
        assert!(matches!(&error, Error::Variable { name: "WELM_SWITCH", got, .. } if got == value));
        let text = format!("environment variable WELM_SWITCH: expected 0 or 1, got {value:?}");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn errors_are_sorted_by_what_comes_after_them() {
    use CUresult::*;
    for fatal in [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_UNKNOWN,
    ] {
        assert!(is_fatal(fatal), "{fatal:?}");
    }
    for harmless in [
        CUDA_SUCCESS,
        CUDA_ERROR_INVALID_VALUE,
        CUDA_ERROR_OUT_OF_MEMORY,
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        CUDA_ERROR_NOT_FOUND,
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    ] {
        assert!(!is_fatal(harmless), "{harmless:?}");
    }
}

#[cfg(target_os = "linux")]
mod with_fake {
    use std::env;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;

    /// Runs `scenario` in a process of its own with the libcuda of `tests/libcuda.c`; `name` is the test's.
    fn run(name: &str, settings: &str, scenario: impl FnOnce()) {
        if env::var_os("FAKE_LIBCUDA").is_some() {
            return scenario();
        }
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libcuda.c");
        let mut compiler = Command::new(env::var_os("CC").unwrap_or("cc".into()));
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(dir.path().join("libcuda.so")).arg(source);
        if settings.contains("without launch") {
            compiler.arg("-DWITHOUT_LAUNCH");
        }
        assert!(compiler.status().unwrap().success());
        let mut process = Command::new(env::current_exe().unwrap());
        process.args([&format!("cuda::tests::with_fake::{name}"), "--exact", "--nocapture"]);
        process.env("LD_LIBRARY_PATH", dir.path()).env("FAKE_LIBCUDA", settings);
        let switch = settings.split_once("no_hopper=").map(|(_, rest)| rest);
        match switch.and_then(|rest| rest.split(' ').next()) {
            Some(value) => process.env(NO_HOPPER, value),
            None => process.env_remove(NO_HOPPER),
        };
        let output = process.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        // The context was released, with everything in it.
        let ends: Vec<_> = text.lines().filter(|line| line.starts_with("libcuda: left")).collect();
        assert!(ends.iter().all(|line| *line == "libcuda: left 0, current 0"), "{text}");
        let opens = !settings.contains("no device");
        assert_eq!(ends.is_empty(), !opens, "{text}");
    }

    fn open() -> (Arc<Cuda>, Device) {
        let cuda = Arc::new(Cuda::open(0, true).unwrap());
        (cuda.clone(), Device::with_driver(cuda))
    }

    /// Launches with parameters like those of `argmax`, whose addresses are never used.
    fn launch(cuda: &Cuda, kernel: Kernel, params: &[u8]) -> Result<()> {
        let grid = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes: 256 };
        // SAFETY: the tests that call this expect an error, or a graph or a queue that never runs.
        unsafe { cuda.launch(kernel, grid, params) }
    }

    fn refusal(result: Result<impl std::fmt::Debug>) -> String {
        match result.unwrap_err() {
            Error::Driver { call, reason } => format!("{call}: {reason}"),
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn computes_in_the_order_of_the_calls() {
        run("computes_in_the_order_of_the_calls", "", || {
            let (cuda, device) = open();
            let info = DeviceInfo {
                name: "Fake 40".to_owned(),
                capability: (9, 0),
                multiprocessors: 132,
                memory_bytes: 1 << 30,
                shared_bytes: 232_448,
            };
            assert_eq!(*device.info(), info);
            let mut values = vec![0.0f32, 2.0, 1.0, 5.0, -1.0, 4.0];
            let mut logits = device.upload(&values).unwrap(); // (2, 3)
            values.fill(9.0); // nothing has run yet
            let mut tokens = device.zeros::<u32>(2).unwrap();
            argmax(&device, &logits, 2, 3, &mut tokens).unwrap();
            logits.write(1, &[-3.0]).unwrap();
            let mut later = device.zeros::<u32>(2).unwrap();
            argmax(&device, &logits, 2, 3, &mut later).unwrap();
            logits.copy_within(3, 0, 3).unwrap();
            assert_eq!(tokens.to_vec().unwrap(), [1, 0]);
            assert_eq!(later.to_vec().unwrap(), [2, 0]);
            assert_eq!(logits.to_vec().unwrap(), [5.0, -1.0, 4.0, 5.0, -1.0, 4.0]);
            assert_eq!(device.free_bytes().unwrap(), (1 << 30) - 6 * 4 - 2 * 8);
            assert!(device.upload::<u8>(&[]).unwrap().to_vec().unwrap().is_empty());

            // From another thread, and with more shared memory than a kernel has by default.
            std::thread::spawn(move || {
                let grid = Grid { blocks: [2, 1, 1], threads: 1024, shared_bytes: 231_424 };
                let mut params = [logits.ptr(), tokens.ptr()].map(u64::to_ne_bytes).concat();
                params.extend(3u64.to_ne_bytes());
                // SAFETY: what `argmax` takes.
                unsafe { cuda.launch(ARGMAX, grid, &params).unwrap() };
                assert_eq!(tokens.to_vec().unwrap(), [0, 0]);
            })
            .join()
            .unwrap();
        });
    }

    #[test]
    fn uploads_may_be_changed_at_once() {
        run("uploads_may_be_changed_at_once", "", || {
            let (_, device) = open();
            for len in [1, 63, STAGING_BYTES / 3, STAGING_BYTES / 2, STAGING_BYTES, STAGING_BYTES + 1] {
                let mut bytes = vec![0u8; len];
                let upload = |i: u8| {
                    bytes.fill(i);
                    device.upload(&bytes).unwrap()
                };
                let buffers: Vec<_> = (1..8).map(upload).collect();
                for (i, buffer) in (1..8).zip(buffers) {
                    assert!(buffer.to_vec().unwrap() == vec![i; len], "{len} bytes, number {i}");
                }
            }
        });
    }

    #[test]
    fn a_recording_runs_again() {
        run("a_recording_runs_again", "", || {
            let (cuda, device) = open();
            let mut logits = device.upload(&[0.0f32, 2.0, 1.0]).unwrap(); // (1, 3)
            let mut tokens = device.upload(&[7u32]).unwrap();
            let spare = device.zeros::<u8>(16).unwrap();
            let mut other = device.zeros::<u8>(16).unwrap();
            let free_bytes = device.free_bytes().unwrap();
            let graph = device
                .capture(|| {
                    // What can't be repeated is refused, and does not spoil the rest.
                    let reason = "not while launches are recorded";
                    assert!(refusal(device.zeros::<u8>(1)).contains(reason));
                    assert!(refusal(other.write(0, &[1])).contains(reason));
                    assert!(refusal(logits.to_vec()).contains(reason));
                    assert!(refusal(device.synchronize()).contains(reason));
                    assert!(refusal(cuda.begin_capture()).contains(reason));
                    drop(spare);
                    assert_eq!(device.free_bytes().unwrap(), free_bytes);
                    // The first launch of all: the code is loaded here.
                    argmax(&device, &logits, 1, 3, &mut tokens)
                })
                .unwrap();
            assert_eq!(tokens.to_vec().unwrap(), [7], "recorded, not run");
            for (values, token) in [([0.0, 2.0, 1.0], 1), ([0.0, 2.0, 3.0], 2), ([4.0, 2.0, 3.0], 0)] {
                logits.write(0, &values).unwrap();
                graph.launch().unwrap();
                assert_eq!(tokens.to_vec().unwrap(), [token]);
            }
            drop(graph);
            assert_eq!(device.free_bytes().unwrap(), free_bytes + 16, "spare is free now");
            cuda.free_graph(0);
            // SAFETY: an error.
            assert!(refusal(unsafe { cuda.launch_graph(0) }).contains("no such recording"));
            // After a recording fails, nothing of it is left, and the next one works.
            let error = device.capture(|| Err::<(), _>(Error::NoCode)).unwrap_err();
            assert_eq!(error, Error::NoCode);
            device.capture(|| argmax(&device, &logits, 1, 3, &mut tokens)).unwrap();
            refusal(cuda.end_capture());
            // A recording that is never freed is freed with the driver.
            cuda.begin_capture().unwrap();
            cuda.end_capture().unwrap();
        });
    }

    #[test]
    fn other_errors_leave_the_device_usable() {
        run("other_errors_leave_the_device_usable", "fail=cuLaunchKernel:701:1", || {
            let (cuda, device) = open();
            let error = refusal(launch(&cuda, ARGMAX, &[0; 24]));
            assert!(error.contains("sample.cu: argmax with Grid") && error.contains("as planned"), "{error}");
            let missing = Kernel { file: "sample", name: "argmin" };
            let error = refusal(launch(&cuda, missing, &[0; 24]));
            assert!(error.contains("sample.cu: argmin: not there for capability 9.0"), "{error}");
            let error = refusal(launch(&cuda, Kernel { file: "sampler", name: "argmax" }, &[0; 24]));
            assert!(error.contains("sampler.cu: not in the device code"), "{error}");
            let error = refusal(launch(&cuda, ARGMAX, &[0; 16]));
            assert!(error.contains("expected 24 bytes of parameters, got 16"), "{error}");
            let most = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes: 231_425 };
            // SAFETY: more shared memory than there is: an error.
            refusal(unsafe { cuda.launch(ARGMAX, most, &[0; 24]) });

            let logits = device.upload(&[0.0f32, 2.0, 1.0]).unwrap();
            let mut tokens = device.zeros::<u32>(1).unwrap();
            argmax(&device, &logits, 1, 3, &mut tokens).unwrap();
            assert_eq!(tokens.to_vec().unwrap(), [1]);
        });
    }

    #[test]
    fn a_lost_context_stays_lost() {
        run("a_lost_context_stays_lost", "fail=cuStreamSynchronize:700:2", || {
            let (cuda, device) = open();
            let mut buffer = device.zeros::<u32>(4).unwrap();
            device.synchronize().unwrap();
            let first = device.synchronize().unwrap_err();
            assert!(matches!(&first, Error::ContextLost(reason)
                if reason.contains("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS")));
            assert_eq!(device.synchronize().unwrap_err(), first);
            assert_eq!(device.upload(&[1u8]).unwrap_err(), first);
            assert_eq!(buffer.write(0, &[1]).unwrap_err(), first);
            assert_eq!(buffer.to_vec().unwrap_err(), first);
            assert_eq!(device.zeros::<u8>(1).unwrap_err(), first);
            assert_eq!(device.free_bytes().unwrap_err(), first);
            assert_eq!(launch(&cuda, ARGMAX, &[0; 24]).unwrap_err(), first);
            assert_eq!(device.capture(|| Ok::<_, Error>(())).unwrap_err(), first);
            assert_eq!(cuda.end_capture().unwrap_err(), first);
        });
    }

    /// After an error that the libcuda returns once.
    fn stays_lost() {
        let (_, device) = open();
        let first = device.synchronize().unwrap_err();
        assert!(matches!(first, Error::ContextLost(_)), "{first}");
        assert_eq!(device.synchronize().unwrap_err(), first);
        assert_eq!(device.zeros::<u8>(1).unwrap_err(), first);
    }

    #[test]
    fn a_lost_context_stays_lost_even_if_the_driver_forgets() {
        let settings = "fail=cuStreamSynchronize:201:1";
        run("a_lost_context_stays_lost_even_if_the_driver_forgets", settings, stays_lost);
    }

    #[test]
    fn an_unknown_error_loses_the_context() {
        run("an_unknown_error_loses_the_context", "fail=cuStreamSynchronize:999:1", stays_lost);
    }

    /// The libcuda of these tests refuses three things: a block with this much shared memory without the largest
    /// carve-out, a block with less and with that carve-out, and asking for it twice.
    #[test]
    fn kernels_that_stage_operands_ask_for_shared_memory() {
        run("kernels_that_stage_operands_ask_for_shared_memory", "carveout=32768", || {
            let (cuda, device) = open();
            let mut logits = device.upload(&[0.0f32, 2.0, 1.0]).unwrap(); // (1, 3)
            let tokens = device.zeros::<u32>(1).unwrap();
            let mut params = [logits.ptr(), tokens.ptr()].map(u64::to_ne_bytes).concat();
            params.extend(3u64.to_ne_bytes());
            for (shared_bytes, values, token) in [
                (32_767, [0.0, 2.0, 1.0], 1),
                (32_768, [3.0, 2.0, 1.0], 0),
                (49_152, [0.0, 2.0, 4.0], 2),
                (98_816, [0.0, 2.0, 1.0], 1),
                (98_816, [3.0, 2.0, 1.0], 0),
            ] {
                logits.write(0, &values).unwrap();
                let grid = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes };
                // SAFETY: what `argmax` takes.
                unsafe { cuda.launch(ARGMAX, grid, &params).unwrap() };
                assert_eq!(tokens.to_vec().unwrap(), [token], "{shared_bytes} bytes");
            }
        });
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        run("memory_that_is_not_there_is_an_error", "memory=1000000", || {
            let (_, device) = open();
            let kept = device.zeros::<u8>(600_000).unwrap();
            let error = device.zeros::<u8>(600_000).unwrap_err();
            assert_eq!(error, Error::OutOfMemory { requested: 600_000, free: 400_000 });
            drop(kept);
            device.zeros::<u8>(600_000).unwrap();
        });
    }

    #[test]
    fn a_context_of_the_caller_comes_back() {
        run("a_context_of_the_caller_comes_back", "", || {
            let current = || {
                let mut context = null_mut();
                // SAFETY: gives a context.
                let _ = unsafe { sys::cuCtxGetCurrent(&mut context) };
                context
            };
            let (cuda, device) = open();
            let ours = current();
            assert_eq!(ours, cuda.context);
            let theirs = std::ptr::without_provenance_mut(64);
            // SAFETY: this libcuda never looks at it.
            let _ = unsafe { sys::cuCtxSetCurrent(theirs) };
            device.zeros::<u8>(1).unwrap();
            assert_eq!(current(), theirs);
            // All of the process shares one context. It does not end when another user of it ends.
            Cuda::open(0, true).map(drop).unwrap();
            device.synchronize().unwrap();
            drop((cuda, device));
            assert_eq!(current(), theirs);
        });
    }

    #[test]
    fn tensor_maps_say_what_the_shape_says() {
        run("tensor_maps_say_what_the_shape_says", "", || {
            let (cuda, _device) = open();
            let shape = TensorShape {
                element_bytes: 1,
                rows: 7,
                cols: 300,
                row_bytes: 320,
                box_rows: 64,
                box_cols: 128,
            };
            // Type, address, sizes, row bytes, box, swizzle and promotion.
            let map = cuda.tensor_map(4096, shape).unwrap();
            assert_eq!(map.0[..9], [0, 4096, 300, 7, 320, 128, 64, 3, 3]);
            let bf16 = TensorShape { element_bytes: 2, box_cols: 64, row_bytes: 640, ..shape };
            assert_eq!(cuda.tensor_map(4096, bf16).unwrap().0[..6], [9, 4096, 300, 7, 640, 64]);
            let error = refusal(cuda.tensor_map(4096, TensorShape { row_bytes: 300, ..shape }));
            assert!(error.contains("row_bytes: 300"), "{error}");
            let error = cuda.tensor_map(4096, TensorShape { element_bytes: 4, ..shape }).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        });
    }

    #[test]
    fn a_device_without_a_copy_engine_has_no_tensor_maps() {
        run("a_device_without_a_copy_engine_has_no_tensor_maps", "capability=80", || {
            let shape = TensorShape {
                element_bytes: 1,
                rows: 7,
                cols: 128,
                row_bytes: 128,
                box_rows: 8,
                box_cols: 128,
            };
            let error = open().0.tensor_map(4096, shape).unwrap_err();
            assert_eq!(error.to_string(), "tensor_map: expected capability 9.0 or newer, got 8.0");
        });
    }

    /// What `Device::open` makes of a device of this capability, with the variable as it is set.
    fn opens_as(name: &str, settings: &str, capability: (u32, u32), hopper: bool) {
        run(name, settings, || {
            let device = Device::open(0).unwrap();
            assert_eq!((device.info().capability, device.is_hopper()), (capability, hopper));
        });
    }

    #[test]
    fn a_hopper_is_one() {
        opens_as("a_hopper_is_one", "", (9, 0), true);
    }

    #[test]
    fn a_hopper_is_one_if_the_switch_is_off() {
        opens_as("a_hopper_is_one_if_the_switch_is_off", "no_hopper=0", (9, 0), true);
    }

    #[test]
    fn a_hopper_is_none_if_the_switch_is_on() {
        opens_as("a_hopper_is_none_if_the_switch_is_on", "no_hopper=1", (9, 0), false);
    }

    #[test]
    fn another_device_is_as_it_was() {
        opens_as("another_device_is_as_it_was", "capability=80 no_hopper=1", (8, 0), false);
    }

    #[test]
    fn a_switch_that_means_nothing_is_an_error() {
        let settings = "no device no_hopper=yes";
        run("a_switch_that_means_nothing_is_an_error", settings, || {
            let error = Device::open(0).unwrap_err();
            assert_eq!(error, Error::Variable { name: NO_HOPPER, expected: "0 or 1", got: "yes".to_owned() });
        });
    }

    #[test]
    fn code_that_the_driver_cannot_read_is_no_device() {
        let settings = "version=13000 fail=cuModuleLoadData:200:1";
        run("code_that_the_driver_cannot_read_is_no_device", settings, || {
            let error = Device::open(0).unwrap_err().to_string();
            assert!(
                error.contains("the driver is of CUDA 13.0, the device code was built by CUDA"),
                "{error}"
            );
        });
    }

    /// What `Device::open` says with these settings, without having retained a context.
    fn refused(name: &str, settings: &str, ordinal: usize, parts: &[&str]) {
        run(name, &format!("no device {settings}"), || {
            let Error::NoDevice(error) = Device::open(ordinal).unwrap_err() else { panic!("another error") };
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        });
    }

    #[test]
    fn one_beyond_the_last_is_no_device() {
        let parts = ["device 1: expected one of 1, from 0 on"];
        refused("one_beyond_the_last_is_no_device", "", 1, &parts);
    }

    #[test]
    fn an_old_driver_is_no_device() {
        let parts = ["Fake 40: the driver is of CUDA 11.8", "was built by CUDA"];
        refused("an_old_driver_is_no_device", "version=11080", 0, &parts);
    }

    #[test]
    fn an_old_device_is_no_device() {
        refused(
            "an_old_device_is_no_device",
            "capability=75",
            0,
            &["Fake 40: compute capability 7.5; 8.0 or newer"],
        );
    }

    #[test]
    fn no_device_is_no_device() {
        refused("no_device_is_no_device", "devices=0", 0, &["cuInit: CUDA_ERROR_FAKE, as planned"]);
    }

    #[test]
    fn an_unknown_error_is_no_device() {
        let parts = ["cuInit: an error without a name"];
        refused("an_unknown_error_is_no_device", "fail=cuInit:7000:1", 0, &parts);
    }

    #[test]
    fn a_missing_function_is_no_device() {
        let parts = ["libcuda has no cuLaunchKernel: the driver is too old"];
        refused("a_missing_function_is_no_device", "without launch", 0, &parts);
    }
}
