//! Fuzz targets: one for each loader, one for options through the C interface, one for stop strings.
//!
//! ```sh
//! tests/fuzz/run 900                  # every target for fifteen minutes, two at a time
//! tests/fuzz/run 60 gguf template     # these for one
//! ```
//!
//! A target takes bytes and does what a caller would do with a file, a template or options made of them, through the
//! public interface. What counts as a finding, besides a crash:
//!
//! * a panic that reaches the caller, and [`welm_core::Error::EngineStopped`], which is one that did not;
//! * memory: [`Budget`] allows a target so much, as whole and at once, whatever lengths the input claims;
//! * time: libFuzzer's limit for one input;
//! * an answer that contradicts the target's own definition of it (`stop`, `options`).
//!
//! Panics of other libraries that welm catches are none. Inputs that were findings are in `tests/fuzz/regressions`, a
//! folder for each target; `tests/fuzzed.rs` runs them, and the seeds, with every test run.

mod budget;
pub mod config;
pub mod files;
pub mod gguf;
pub mod int8;
pub mod options;
pub mod safetensors;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use budget::Budget;

/// What is run with bytes.
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
        /// All of them.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), seeds: $name::seeds, run: $name::run }),*];
    };
}

/// The program of a target; libFuzzer brings `main`.
#[macro_export]
macro_rules! program {
    ($name:ident) => {
        #[global_allocator]
        static ALLOCATOR: $crate::Budget = $crate::Budget;

        libfuzzer_sys::fuzz_target!(init: $crate::start($crate::$name::seeds), |input: &[u8]| $crate::$name::run(input));
    };
}

targets!(safetensors, gguf, config, tokenizer, template, int8, options, stop);

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
