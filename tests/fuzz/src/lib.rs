//! Fuzz targets: one for each loader, one for options through the C interface, one for stop strings.
//!
//! ```sh
//! tests/fuzz/run 900                  # every target for fifteen minutes, two at a time
//! tests/fuzz/run 60 gguf template     # these for one
//! ```
//!
//! A target takes bytes, makes a file, a template or options of them, and uses these as a caller would, through the
//! public interface. Besides a crash, these are findings:
//!
//! * a panic that reaches the caller, and [`welm_core::Error::EngineStopped`], which is a panic inside the engine;
//! * too much memory: [`Budget`] limits each allocation and their sum, whatever lengths the input claims;
//! * too much time: libFuzzer has a limit for one input;
//! * an answer that differs from the target's own definition (`stop`, `options`).
//!
//! Panics of other libraries that welm catches are not findings. Inputs of old findings are in
//! `tests/fuzz/regressions`, with a folder for each target; `tests/damage.rs` runs them, and the seeds, with every test
//! run.

mod budget;
pub mod config;
pub mod damage;
pub mod files;
pub mod gguf;
pub mod int8;
pub mod options;
pub mod pieces;
pub mod safetensors;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use budget::Budget;

/// A target, which is run with bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Runs one input; panics at a finding.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident),*) => {
        /// All targets.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), seeds: $name::seeds, run: $name::run }),*];
    };
}

/// The program of a target; libFuzzer has `main`.
#[macro_export]
macro_rules! program {
    ($name:ident) => {
        #[global_allocator]
        static ALLOCATOR: $crate::Budget = $crate::Budget;

        libfuzzer_sys::fuzz_target!(init: $crate::start($crate::$name::seeds), |input: &[u8]| $crate::$name::run(input));
    };
}

targets!(safetensors, gguf, config, tokenizer, template, int8, options, pieces, stop);

/// Makes a process ready to run a target; with `WELM_FUZZ_SEEDS`, writes the seeds into that folder instead, and ends.
pub fn start(seeds: fn() -> Vec<Vec<u8>>) {
    // libFuzzer's hook ends the process at every panic, those that are caught included.
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("WELM_FUZZ_PANICS").is_some() {
            eprintln!("{info}");
        }
    }));
    if let Some(folder) = std::env::var_os("WELM_FUZZ_SEEDS") {
        for (i, seed) in seeds().into_iter().enumerate() {
            std::fs::write(std::path::Path::new(&folder).join(format!("seed-{i}")), seed)
                .expect("a writable folder");
        }
        std::process::exit(0);
    }
}
