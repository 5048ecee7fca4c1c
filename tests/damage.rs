//! Damaged files, and what the fuzz targets found once: a typed error or a working model, in a few seconds, with little
//! memory, and never a panic in any thread.
//!
//! `WELM_DAMAGE=10000` makes as many damaged copies of each kind of file, `WELM_DAMAGE=123..124` one again.

// Its parts are for programs that fuzz, too.
#[allow(dead_code, unused_macros, unreachable_pub, missing_docs)]
#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use welm_core::{Error, LoadOptions, Model};
use welm_tests::fixture;

use fuzz::files::LOADED;

#[global_allocator]
static ALLOCATOR: fuzz::Budget = fuzz::Budget;

/// A panic, of which the engine makes an error, or a caller nothing.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Longest time of one input.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 5 });

/// Runs `job`, whose name is printed; ends the process if it takes too long, and fails if there was a panic anywhere.
fn watched(name: &str, job: impl FnOnce()) {
    println!("{name}");
    let (done, waits) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} takes longer than {LONGEST:?}");
                std::process::abort();
            }
        });
        let _ends = done;
        job();
    });
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{name}: {panics:?}");
}

fn collect_panics() {
    std::panic::set_hook(Box::new(|info| {
        // The tokenizer library's own panics are caught and become errors.
        if !info.location().is_some_and(|l| l.file().contains("tokenizers-")) {
            PANICS.lock().unwrap().push(info.to_string());
        }
        eprintln!("{info}");
    }));
}

/// Seeds of damaged copies: so many, or those that the variable names.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("WELM_DAMAGE") else { return 0..few };
    let number = |text: &str| text.parse::<u64>().expect("WELM_DAMAGE is a number or FROM..TO");
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&text),
    }
}

/// Uses damaged copies of a kind of file. Some of them must still work, and some not.
fn damaged(name: &str, few: u64) {
    collect_panics();
    let kind = fuzz::damage::KINDS.iter().find(|kind| kind.name == name).unwrap();
    let (seeds, before) = (seeds(few), LOADED.load(Relaxed));
    for seed in seeds.clone() {
        watched(&format!("{name}, copy {seed}"), || (kind.run)(seed));
    }
    let (copies, loaded) = (seeds.count(), LOADED.load(Relaxed) - before);
    println!("{loaded} of {copies} copies can be loaded");
    assert!(copies < 100 || (copies / 50..copies * 49 / 50).contains(&loaded));
}

#[test]
fn damaged_gguf_files() {
    damaged("gguf", 600);
}

#[test]
fn damaged_folders() {
    damaged("folder", 600);
}

#[test]
fn damaged_tokenizers() {
    damaged("tokenizer", 300);
}

#[test]
fn damaged_tokenizers_of_sentencepiece() {
    damaged("pieces", 300);
}

#[test]
fn damaged_int8_folders() {
    damaged("int8", 200);
}

/// With `WELM_DAMAGE`, a thousand places of each kind.
#[test]
fn files_that_are_cut() {
    collect_panics();
    let places = if std::env::var_os("WELM_DAMAGE").is_some() { 1_000 } else { 60 };
    for target in
        fuzz::TARGETS.iter().filter(|target| !["options", "stop", "template"].contains(&target.name))
    {
        let seeds = (target.seeds)();
        for place in 0..places {
            watched(&format!("{}, cut {place} of {places}", target.name), || {
                fuzz::damage::cut(target, &seeds, place, places);
            });
        }
    }
}

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

/// Seeds of the fuzz targets and what they found once, run as `tests/fuzz/run` runs them, without libFuzzer.
#[test]
fn nothing_is_found_again() {
    for target in fuzz::TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{}", target.name);
        for (name, input) in inputs {
            watched(&format!("{}: {name}", target.name), || (target.run)(&input));
        }
    }
}

#[test]
fn what_is_no_model_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| Model::load(path, &LoadOptions::default()).map(drop).unwrap_err();
    assert!(matches!(load(&folder.path().join("absent")), Error::Io { .. }));
    assert!(matches!(load(folder.path()), Error::Io { .. }), "no config.json");
    std::fs::write(folder.path().join("x.gguf"), b"GGML and more").unwrap();
    assert!(matches!(load(&folder.path().join("x.gguf")), Error::InvalidFile { .. }));
    std::fs::write(folder.path().join("empty.gguf"), b"").unwrap();
    assert!(matches!(load(&folder.path().join("empty.gguf")), Error::InvalidFile { .. }));
    std::fs::copy(fixture("llama_gqa/config.json"), folder.path().join("config.json")).unwrap();
    assert!(matches!(load(folder.path()), Error::Io { .. } | Error::InvalidFile { .. }), "no weights");
    std::fs::copy(fixture("neox_odd/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(load(folder.path()), Error::Tensor { .. }), "another model's weights");
}
