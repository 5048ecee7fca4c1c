//! Code that the tests of C and of C++ share: where the installed library is, and how programs are built with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::{data, pins};

/// Where welm is installed: `WELM_PREFIX`, or where `tests/capi/install` puts it.
pub static PREFIX: LazyLock<PathBuf> = LazyLock::new(|| {
    let default = || {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| data("target"), PathBuf::from);
        target.join("capi-prefix")
    };
    let prefix = std::env::var_os("WELM_PREFIX").map_or_else(default, PathBuf::from);
    for header in ["welm.h", "welm.hpp", "welm_types.hpp"] {
        let installed = fs::read_to_string(prefix.join("include").join(header));
        let current = fs::read_to_string(data("include").join(header)).unwrap();
        assert!(
            installed.is_ok_and(|text| text == current),
            "this {header} is not installed in {}; tests/capi/install does it",
            prefix.display()
        );
    }
    prefix.canonicalize().unwrap()
});

/// How a program is linked with the library.
#[derive(Clone, Copy, PartialEq)]
pub enum Linkage {
    /// As `libwelm.so`.
    Shared,
    /// As `libwelm.a`.
    Static,
}

/// The folder of libraries below a prefix: `lib`, or what the system calls its own.
pub fn libdir(prefix: &Path) -> PathBuf {
    let inner = fs::read_dir(prefix.join("lib")).unwrap().map(|entry| entry.unwrap().path());
    let mut all = inner.chain([prefix.join("lib"), prefix.join("lib64")]);
    all.find(|dir| dir.join("libwelm.a").exists()).expect("libwelm.a is installed")
}

/// Runs a command to its end, which must be a success, and gives its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// The arguments that link welm, as pkg-config has them.
pub fn linking(linkage: Linkage) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", libdir(&PREFIX).join("pkgconfig")).args(["--cflags", "--libs"]);
    let flags = run(command.args((linkage == Linkage::Static).then_some("--static")).arg("welm"));
    let flags = flags.split_whitespace().map(String::from);
    match linkage {
        Linkage::Shared => flags.chain([format!("-Wl,-rpath,{}", libdir(&PREFIX).display())]).collect(),
        Linkage::Static => flags.map(|f| if f == "-lwelm" { "-l:libwelm.a".into() } else { f }).collect(),
    }
}

/// Checks that a program has the soname if it is linked with the shared library, and only then.
pub fn check_linkage(program: &Path, linkage: Linkage) {
    let needed = run(Command::new("readelf").arg("-d").arg(program)).contains("[libwelm.so.0.1]");
    assert_eq!(needed, linkage == Linkage::Shared, "{}", program.display());
}

/// Configures a CMake project against a prefix and builds some targets of it, or all; what CMake said if it could not
/// be configured.
pub fn cmake(
    source: &Path,
    prefix: &Path,
    options: &[String],
    targets: &[&str],
) -> (TempDir, Result<(), String>) {
    let build = tempfile::tempdir().unwrap();
    let built = cmake_in(build.path(), source, prefix, options, targets);
    (build, built)
}

/// The same in a folder that may have been built in before.
pub fn cmake_in(
    build: &Path,
    source: &Path,
    prefix: &Path,
    options: &[String],
    targets: &[&str],
) -> Result<(), String> {
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(build).args(options);
    let output = configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())).output();
    let output = output.expect("cmake runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    for target in if targets.is_empty() { &["all"] } else { targets } {
        run(Command::new("cmake").arg("--build").arg(build).args(["--parallel", "--target", target]));
    }
    Ok(())
}

/// The CMake option for a linkage.
pub fn cmake_linkage(linkage: Linkage) -> String {
    format!("-DWELM_USE_STATIC={}", if linkage == Linkage::Static { "ON" } else { "OFF" })
}

/// The pins as arguments of a program: prompt, ids with spaces between them, text.
pub fn pin_arguments() -> Vec<[String; 3]> {
    let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    pins().into_iter().map(|pin| [pin.prompt, ids(&pin.ids), pin.text]).collect()
}

/// The blocks of a language in a README.
pub fn code_blocks(readme: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(data(readme)).unwrap();
    let begin = format!("```{language}\n");
    let blocks: Vec<_> =
        text.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect();
    assert!(!blocks.is_empty(), "{readme} has no {language}");
    blocks
}
