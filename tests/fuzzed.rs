//! What the fuzz targets found once, and their seeds: run as `tests/fuzz/run` runs them, without libFuzzer.

// Its parts are for programs that fuzz, too.
#[allow(dead_code, unused_macros, unreachable_pub, missing_docs)]
#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: fuzz::Budget = fuzz::Budget;

/// Inputs of a target, with names.
fn inputs(target: &fuzz::Target) -> Vec<(String, Vec<u8>)> {
    let seeds = (target.seeds)().into_iter().enumerate().map(|(i, seed)| (format!("seed {i}"), seed));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(target.name);
    let found = std::fs::read_dir(folder).into_iter().flatten().map(|entry| {
        let path = entry.unwrap().path();
        (path.display().to_string(), std::fs::read(&path).unwrap())
    });
    seeds.chain(found).collect()
}

#[test]
fn nothing_is_found_again() {
    for target in fuzz::TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{}", target.name);
        for (name, input) in inputs {
            println!("{}: {name}", target.name);
            let started = Instant::now();
            (target.run)(&input);
            assert!(started.elapsed() < Duration::from_secs(10), "{}: {name} takes too long", target.name);
        }
    }
}
