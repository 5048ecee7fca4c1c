//! Tests of the packages that would be published, as far as possible without compiling. `.release/make` builds and
//! tries all of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use welm_tests::data;
use welm_tests::installed::run;

/// The files below a folder of a crate, by their names in it.
fn below(root: &Path, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap());
    let files = entries.flat_map(|entry| {
        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() { below(root, &name) } else { vec![name] }
    });
    files.collect()
}

/// Checks that a crate's archive has its sources, its description and its licences, and nothing else.
fn check_archive(name: &str, folders: &[&str], most: u64) {
    let root = data(name);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--list", "--offline", "--allow-dirty", "--package", name]);
    let list = run(cargo.current_dir(data(".")));
    // Cargo makes these itself.
    let made = ["Cargo.lock", "Cargo.toml.orig", ".cargo_vcs_info.json"];
    let packed: BTreeSet<_> = list.lines().filter(|line| !made.contains(line)).map(String::from).collect();
    let files = ["Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "build.rs"];
    let files = files.iter().filter(|&&file| file != "build.rs" || root.join(file).exists());
    let expected = folders.iter().flat_map(|folder| below(&root, folder));
    let expected: BTreeSet<_> = expected.chain(files.map(|file| file.to_string())).collect();
    assert_eq!(packed, expected, "{name}");
    let bytes: u64 = packed.iter().map(|file| fs::metadata(root.join(file)).unwrap().len()).sum();
    println!("{name}: {} files, {bytes} bytes", packed.len());
    assert!(bytes < most, "{name}: expected less than {most} bytes, got {bytes}");
}

#[test]
fn archives_of_crates_hold_what_they_need_and_nothing_more() {
    check_archive("welm-kernels", &["src", "cuda"], 600_000);
    check_archive("welm-cpu", &["src"], 300_000);
    check_archive("welm-core", &["src"], 2_500_000);
    check_archive("welm-capi", &["src", "include", "cmake"], 400_000);
}

#[test]
fn licences_are_the_same_everywhere() {
    for name in ["welm-cpu", "welm-kernels", "welm-core", "welm-capi", "welm-py"] {
        for file in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let (own, all) = (fs::read(data(name).join(file)).unwrap(), fs::read(data(file)).unwrap());
            assert!(own == all, "{name}/{file} is another one than {file}");
        }
    }
}

#[test]
fn all_that_is_linked_in_may_be_given_away_and_has_its_licence() {
    for (package, features, linked) in [
        ("welm-py", &["cuda"][..], &["pyo3", "cudarc", "tokenizers"][..]),
        ("welm-capi", &[], &["tokenizers"]),
    ] {
        let mut licences = Command::new(data(".release/licences"));
        let text = run(licences.arg(package).args(features).env("CARGO_NET_OFFLINE", "true"));
        let (crates, texts) = text.split_once("\n\n=").unwrap();
        for name in linked {
            assert!(crates.contains(&format!("\n    {name} ")), "{package}: {name}");
            assert!(texts.contains(&format!("\n{name} ")), "{package}: the text of {name}");
        }
        // The tables of regular expressions have a licence of their own. Crates of tests, build scripts and macros are
        // not listed.
        assert!(texts.contains(": LICENSE-UNICODE"), "{package}");
        for name in ["tempfile", "cbindgen", "syn", "serde_derive", "version_check", "welm-cpu", "welm-core"]
        {
            assert!(!crates.contains(&format!("\n    {name} ")), "{package}: {name}");
        }
    }
}
