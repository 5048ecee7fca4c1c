//! Compiles the CUDA kernels as C++ for the emulator: one shared library for each `.cu`.

#[path = "emulator/compile.rs"]
#[expect(unreachable_pub, reason = "the library exports it")]
mod compile;

use std::path::{Path, PathBuf};
use std::{env, fs, thread};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (cuda, emulator) = (root.join("../welm-kernels/cuda"), root.join("emulator"));
    println!("cargo::rerun-if-changed={}", cuda.display());
    println!("cargo::rerun-if-changed={}", emulator.display());
    println!("cargo::rerun-if-env-changed=CXX");
    println!("cargo::rustc-env=WELM_EMULATOR_LIBRARIES={}", out.display());
    // Clippy has an OUT_DIR of its own, and runs nothing.
    if env::var("RUSTC_WORKSPACE_WRAPPER").is_ok_and(|wrapper| wrapper.contains("clippy-driver")) {
        return;
    }

    let headers: Vec<PathBuf> =
        [files(&cuda, "cuh"), files(&emulator, "cuh"), files(&emulator, "h")].concat();
    let compiled = env::current_exe().expect("build scripts have a path");
    let jobs: Vec<_> = files(&cuda, "cu")
        .into_iter()
        .map(|source| (out.join(source.file_stem().unwrap()).with_extension("so"), source))
        .filter(|(library, source)| {
            // A library is compiled only if it is older than its source, the headers or this script.
            let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
            let inputs = headers.iter().chain([source, &compiled]);
            time(library).is_none() || inputs.map(|p| time(p)).max().flatten() > time(library)
        })
        .collect();
    let n_threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                while let Some((library, source)) =
                    jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    if let Err(e) = compile::compile(source, &cuda, &emulator, library, "2") {
                        panic!("{e}");
                    }
                }
            });
        }
    });
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder that can be read").path());
    paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}
