//! The example programs with an output that nobody reads, or that cannot be written.

#![cfg(target_os = "linux")] // for /dev/full

use std::fs::File;
use std::io::pipe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Command lines that write on stdout: name and arguments.
const PROGRAMS: &[&[&str]] = &[
    &["generate", "床前明月光", "--max-tokens", "40"],
    &["generate", "床前明月光", "-n", "2", "--max-tokens", "4"],
    &["stream"],
    &["batch", "--max-tokens", "4"],
    &["score"],
];

fn command(line: &[&str]) -> Command {
    let test = std::env::current_exe().expect("tests have a path");
    let target = test.ancestors().nth(2).expect("tests are in `deps`");
    let mut command = Command::new(target.join("examples").join(line[0]));
    command.args(&line[1..]);
    command
}

/// The end of a pipe whose reader has gone.
fn unread() -> Stdio {
    pipe().expect("there are pipes").1.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("Linux has it").into()
}

/// Exit code, and what is on stderr.
fn end(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("examples are built with their tests");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_program_without_a_reader_ends_in_silence() {
    for line in PROGRAMS {
        assert_eq!(end(command(line).stdout(unread())), (Some(141), String::new()), "{line:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    for line in PROGRAMS {
        let want = "Error: No space left on device (os error 28)\n".to_string();
        assert_eq!(end(command(line).stdout(full())), (Some(1), want), "{line:?}");
    }
}

#[test]
fn a_stderr_that_cannot_be_written_to_changes_nothing() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llama_gqa");
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("unread-int8");
    let quantize = ["quantize", from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")];
    for line in PROGRAMS.iter().copied().chain([&quantize as &[&str]]) {
        for stderr in [unread(), full()] {
            let _ = std::fs::remove_dir_all(&to);
            assert_eq!(end(command(line).stderr(stderr)).0, Some(0), "{line:?}");
        }
    }
    assert!(to.join("model.safetensors").exists());
}

#[test]
fn an_error_is_a_line() {
    let (code, told) = end(&mut command(&["score", "--model", "/no/such/model"]));
    assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.starts_with("Error: /no/such/model"), "{told}");
}
