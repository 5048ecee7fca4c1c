//! Tests that [`quantize`] may be stopped at any moment: the target is then either the old model or the new one, and
//! the source is never changed.
//!
//! A process is killed, or its disk gets full, at each of its calls that change files. A small library that is loaded
//! before the C library counts these calls (`quantize/faults.c`).
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use welm_core::{Device, Error, LoadOptions, Message, Model, quantize};
use welm_tests::fixture;

/// All files below a folder, with their contents; empty folders are ignored.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn tree(folder: &Path) -> Tree {
    fn walk(folder: &Path, below: &Path, all: &mut Tree) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = below.join(entry.file_name());
            // Links are followed, as when the model is loaded.
            match entry.path().is_dir() {
                true => walk(&entry.path(), &name, all),
                false => _ = all.insert(name, fs::read(entry.path()).unwrap()),
            }
        }
    }
    let mut all = Tree::new();
    walk(folder, Path::new(""), &mut all);
    all
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in tree(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// A source with every kind of description.
fn source(model: &str, scratch: &Path, name: &str) -> PathBuf {
    let folder = scratch.join(name);
    copy(&fixture(model), &folder);
    for side in ["generation_config.json", "special_tokens_map.json", "added_tokens.json"] {
        fs::write(folder.join(side), "{}").unwrap();
    }
    fs::write(folder.join("chat_template.jinja"), format!("{{{{ {name:?} }}}}")).unwrap();
    fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    fs::write(folder.join("additional_chat_templates/rag.jinja"), "{{ 1 }}").unwrap();
    folder
}

fn load(folder: &Path) -> Result<Model, Error> {
    let cache_tokens = Some(64);
    let options =
        LoadOptions { device: Device::Cpu, threads: Some(1), cache_tokens, ..LoadOptions::default() };
    Model::load(folder, &options)
}

/// This program again, which quantises in a process of its own, with that library and these settings of it.
fn quantize_with(library: &Path, settings: &[(&str, String)], from: &Path, to: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("WELM_TEST_CHILD", [from, to].map(|path| path.to_str().unwrap()).join("\n"));
    command.env("LD_PRELOAD", library).envs(settings.iter().map(|(name, value)| (name, value)));
    command.output().unwrap()
}

#[test]
#[ignore = "the other tests run it, in processes of their own"]
fn child() {
    let paths = std::env::var("WELM_TEST_CHILD").expect("another test says what to do");
    let (from, to) = paths.split_once('\n').unwrap();
    match quantize(from.as_ref(), to.as_ref(), |_| true) {
        Ok(()) => println!("RESULT ok"),
        Err(error) => println!("RESULT {error}"),
    }
}

fn compiled(scratch: &Path) -> PathBuf {
    let library = scratch.join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("quantize/faults.c");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl");
    assert!(compiler.status().unwrap().success());
    library
}

/// Names in a folder that begin with a dot.
fn hidden(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(b".")).count()
}

/// The content of the target before.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Empty,
    /// Another model, whose descriptions are links to the source's.
    Linked,
}

/// Another model of the same shape, so that a mixture of the two would load.
fn change_weights(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn prepare(before: Before, from: &Path, old: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    match before {
        Before::Nothing => {}
        Before::Empty => fs::create_dir(to).unwrap(),
        Before::Linked => {
            copy(old, to);
            for side in ["config.json", "generation_config.json", "chat_template.jinja"] {
                fs::remove_file(to.join(side)).unwrap();
            }
            symlink(from.join("config.json"), to.join("config.json")).unwrap();
            symlink("../../from/generation_config.json", to.join("generation_config.json")).unwrap();
            fs::hard_link(from.join("chat_template.jinja"), to.join("chat_template.jinja")).unwrap();
        }
    }
}

/// The files in a folder, without drafts.
fn visible(folder: &Path) -> Tree {
    let mut tree = tree(folder);
    tree.retain(|name, _| !name.as_os_str().as_encoded_bytes().starts_with(b"."));
    tree
}

/// Makes every call fail, one after the other. Gives how many there are.
fn at_every_call(before: Before, full: bool) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    let library = compiled(scratch.path());
    let at = |name: &str| scratch.path().join(name);
    let (from, old, new, to) =
        (source("llama_gqa", scratch.path(), "from"), at("old"), at("new"), at("place/to"));
    fs::create_dir(at("place")).unwrap();
    quantize(&from, &new, |_| true).unwrap();
    copy(&new, &old);
    change_weights(&old.join("model.safetensors"));
    let (source, new) = (tree(&from), tree(&new));
    for call in 1.. {
        prepare(before, &from, &old, &to);
        let old = to.exists().then(|| tree(&to));
        let mut settings = vec![("WELM_FAULT_AT", call.to_string())];
        settings.extend(full.then(|| ("WELM_FAULT_FULL", String::new())));
        let output = quantize_with(&library, &settings, &from, &to);
        let said = String::from_utf8_lossy(&output.stdout);
        let what = format!("{before:?}, full: {full}, call {call}: {said} {:?}", output.status);

        assert_eq!(tree(&from), source, "{what}");
        let is_new = to.exists() && visible(&to) == new;
        let is_old = match before {
            Before::Nothing => !to.exists(),
            // A draft lies inside then, and the weights come last.
            Before::Empty => to.exists() && !to.join("model.safetensors").exists(),
            Before::Linked => Some(tree(&to)) == old,
        };
        assert!(is_new || is_old, "{what}");
        if is_new || before == Before::Linked {
            load(&to).unwrap();
        }

        let drafts = || hidden(&at("place")) + if to.exists() { hidden(&to) } else { 0 };
        if output.status.signal() == Some(libc::SIGKILL) {
            assert!(!full, "{what}");
            // Leftovers do no harm, and are removed by the next run.
            match quantize(&from, &to, |_| true) {
                Ok(()) => assert_eq!((visible(&to), drafts()), (new.clone(), 0), "{what}"),
                // Except in the short time when files are moved from the draft to the target.
                Err(Error::InvalidOption { option: "to", .. }) => assert_eq!(before, Before::Empty, "{what}"),
                Err(error) => panic!("{what}: {error}"),
            }
            continue;
        }
        assert!(output.status.success(), "{what}");
        assert_eq!(drafts(), 0, "{what}");
        if said.contains("RESULT ok") {
            assert!(is_new, "{what}");
            return call - 1;
        }
        assert!(full && is_old && said.contains("No space left on device"), "{what}");
    }
    unreachable!()
}

#[test]
fn a_process_that_is_killed_leaves_the_old_model_or_the_new_one() {
    for before in [Before::Nothing, Before::Empty, Before::Linked] {
        let calls = at_every_call(before, false);
        println!("{before:?}: killed at {calls} calls");
        assert!(calls > 30, "{before:?}: {calls}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_model() {
    for before in [Before::Nothing, Before::Empty, Before::Linked] {
        let calls = at_every_call(before, true);
        println!("{before:?}: a full disk at {calls} calls");
        assert!(calls > 25, "{before:?}: {calls}");
    }
}

/// Several processes write to one target while others load from it. Each load gets one of the models.
#[test]
fn those_who_write_at_the_same_time_do_not_mix() {
    let scratch = tempfile::tempdir().unwrap();
    let sources = [source("llama_gqa", scratch.path(), "a"), source("llama_gqa", scratch.path(), "b")];
    change_weights(&sources[1].join("model.safetensors"));
    let to = scratch.path().join("place/to");
    let whole = sources.each_ref().map(|from| {
        quantize(from, &to, |_| true).unwrap();
        (ask(&to), tree(&to))
    });
    assert_ne!(whole[0], whole[1]);
    let writing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|i| {
                let (from, to) = (&sources[i % 2], &to);
                scope.spawn(move || (0..20).for_each(|_| quantize(from, to, |_| true).unwrap()))
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut loads = 0;
            while writing.load(Ordering::Relaxed) || loads == 0 {
                let answer = ask(&to);
                assert!(whole.iter().any(|(right, _)| *right == answer));
                loads += 1;
            }
        });
        // The reader ends when the writers do, even if they failed.
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        writing.store(false, Ordering::Relaxed);
        ends.into_iter().for_each(Result::unwrap);
        reader.join().unwrap();
    });
    assert!(whole.iter().any(|(_, right)| *right == tree(&to)));
    assert_eq!(hidden(to.parent().unwrap()), 0);
}

/// The model's own numbers, and the text of its template.
fn ask(folder: &Path) -> (Vec<f32>, String) {
    let model = load(folder).unwrap();
    let prompt = model.chat_prompt(&[Message::new("user", "hi")], true).unwrap();
    (model.logits(&vec![1, 2, 3], 0).unwrap(), prompt)
}

/// A folder that quantize did not write is not replaced.
#[test]
fn a_folder_with_anything_else_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let from = source("llama_gqa", scratch.path(), "from");
    let to = scratch.path().join("to");
    let refused = |held: &str| {
        let before = tree(&to);
        let error = quantize(&from, &to, |_| true).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option: "to", .. }), "{error}");
        assert!(error.to_string().ends_with(&format!("which has {held}")), "{error}");
        assert_eq!(tree(&to), before);
    };
    // Another model's tokenizer; a model of floats; our model and a file of somebody else.
    fs::create_dir(&to).unwrap();
    fs::write(to.join("tokenizer.json"), "{}").unwrap();
    refused("tokenizer.json");
    copy(&from, &to);
    refused("model.safetensors");
    fs::remove_dir_all(&to).unwrap();
    for name in [
        "README.md",
        ".git/config",
        "model-00001-of-00002.safetensors",
        "additional_chat_templates/notes.txt",
    ] {
        quantize(&from, &to, |_| true).unwrap();
        fs::create_dir_all(to.join(name).parent().unwrap()).unwrap();
        fs::write(to.join(name), "mine").unwrap();
        refused(name.split('/').next().unwrap());
        fs::remove_dir_all(&to).unwrap();
    }
    // A link stays one, and its folder gets the model.
    let real = scratch.path().join("real");
    quantize(&from, &real, |_| true).unwrap();
    change_weights(&real.join("model.safetensors"));
    symlink("real", &to).unwrap();
    quantize(&from, &to, |_| true).unwrap();
    assert!(to.is_symlink() && real.is_dir() && !real.is_symlink());
    let fresh = scratch.path().join("fresh");
    quantize(&from, &fresh, |_| true).unwrap();
    assert_eq!(tree(&real), tree(&fresh));
}
