//! Runs the tests, type checkers and linters of the Python package, in the virtual environment that
//! `tests/python/install` makes; `WELM_PYTHON` is its python.

use std::path::Path;
use std::process::Command;

fn python() -> String {
    std::env::var("WELM_PYTHON").unwrap_or_else(|_| {
        panic!("expected WELM_PYTHON to name a python with welm and its test tools, as tests/python/install prints it")
    })
}

/// Runs a module of that python in the root of the repository, and shows what it says if it fails.
fn run(module: &str, arguments: &[&str]) {
    let python = python();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(&python);
    command.current_dir(root).args(["-m", module]).args(arguments);
    // The caller may have another virtual environment, such as the one with the CUDA compiler.
    command.env_remove("VIRTUAL_ENV").env_remove("PYTHONPATH");
    // Modules are compiled once, not by each of hundreds of processes.
    command.env_remove("PYTHONDONTWRITEBYTECODE");
    let output = command.output().unwrap_or_else(|e| panic!("{python}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{module}:\n{}{}", text(&output.stdout), text(&output.stderr));
    println!("{}", text(&output.stdout));
}

#[test]
fn tests() {
    run("pytest", &["-q", "-rP", "--timeout", "300", "-p", "no:cacheprovider", "tests/python"]);
}

#[test]
fn mypy() {
    let config = ["--config-file", "welm-py/pyproject.toml"];
    run("mypy", &[&config[..], &["-p", "welm"]].concat());
    run("mypy", &[&config[..], &["tests/python"]].concat());
}

#[test]
fn stubs_are_what_is_there() {
    let config = ["--mypy-config-file", "welm-py/pyproject.toml"];
    run("mypy.stubtest", &[&["welm", "--allowlist", "tests/python/stubtest.txt"][..], &config[..]].concat());
}

#[test]
fn pyright() {
    // It would look for packages in the python on PATH.
    let python = ["--pythonpath", &python()];
    run("pyright", &[&python[..], &["--project", "welm-py", "welm-py/python", "tests/python"]].concat());
}

#[test]
fn ruff() {
    let config = ["--config", "welm-py/pyproject.toml"];
    for arguments in [&["check"][..], &["format", "--check"]] {
        let folders = ["welm-py/python", "tests/python", "tests/evaluation", "tests/serve", "tests/train"];
        run("ruff", &[arguments, &config[..], &folders[..]].concat());
    }
}
