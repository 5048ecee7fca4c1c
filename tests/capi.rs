//! Tests of the installed C library. `tests/capi/install` installs it into a prefix; these tests build programs with
//! it.
//!
//! The programs of `tests/capi` are compiled as users compile theirs, through pkg-config and through CMake, against
//! the shared and the static library, and run on the model of this repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use welm_tests::installed::Linkage::{self, Shared, Static};
use welm_tests::installed::{
    PREFIX, check_linkage, cmake, cmake_linkage, code_blocks, libdir, linking, pin_arguments, run,
};
use welm_tests::{data, fixture, nano};

/// Warnings that must not occur in our files and in the headers of welm.
const STRICT: [&str; 5] = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"];
const SOURCES: [&str; 9] = ["main", "load", "log", "tokens", "chat", "generate", "stream", "threads", "fork"];

/// Compiles the consumer of `tests/capi`.
fn compile(linkage: Linkage, more: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("consumer");
    let sources = SOURCES.map(|name| data("tests/capi").join(format!("{name}.c")));
    let mut command = Command::new("gcc");
    command.args(STRICT).args(more).args(sources).arg("-o").arg(&program);
    run(command.args(linking(linkage)).args(["-lpthread", "-lm"]));
    (folder, program)
}

/// Runs the consumer, for instance under valgrind. How it was built decides little of what it shows: one build runs
/// everything, as often as it takes to meet rare orders of events, the others the same less often.
fn consume(mut command: Command, whole: bool) {
    if !whole {
        command.env("WELM_TEST_FEW", "1").env("WELM_TEST_THREADS", "1");
    }
    let scratch = tempfile::tempdir().unwrap();
    command.arg(nano()).arg(fixture("llama_f16")).arg(scratch.path());
    command.args(pin_arguments().iter().flatten());
    assert!(run(&mut command).ends_with("all passed\n"));
}

#[test]
fn a_consumer_through_pkg_config() {
    for linkage in [Shared, Static] {
        let (_folder, program) = compile(linkage, &["-O1"]);
        check_linkage(&program, linkage);
        consume(Command::new(&program), linkage == Shared);
    }
}

#[test]
fn a_consumer_under_the_sanitizers() {
    let options = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let (_folder, program) = compile(Shared, &options);
    let mut command = Command::new(&program);
    command.env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1");
    consume(command, false);
}

#[test]
fn a_consumer_under_valgrind() {
    let (_folder, program) = compile(Shared, &["-g", "-O1"]);
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]);
    // Memory that a static still points to at the end is not a leak.
    let lost = "definite,indirect,possible";
    command.args([format!("--errors-for-leak-kinds={lost}"), format!("--show-leak-kinds={lost}")]);
    command.arg(format!("--suppressions={}", data("tests/capi/valgrind.supp").display()));
    // Valgrind does not know AVX-512.
    let isa = if cfg!(target_arch = "x86_64") { "avx2" } else { "scalar" };
    command.env("WELM_ISA", isa).env("WELM_TEST_VALGRIND", "1");
    command.arg("--fair-sched=yes").arg(&program);
    consume(command, false);
}

#[test]
fn a_consumer_through_cmake() {
    for linkage in [Shared, Static] {
        let (build, built) = cmake(&data("tests/capi"), &PREFIX, &[cmake_linkage(linkage)], &[]);
        built.unwrap();
        let program = build.path().join("consumer");
        check_linkage(&program, linkage);
        consume(Command::new(&program), false);
    }
}

#[test]
fn the_cmake_package_can_be_moved_and_knows_its_version() {
    let moved = tempfile::tempdir().unwrap();
    run(Command::new("cp").arg("-a").arg(PREFIX.join(".")).arg(moved.path()));
    let project = |version: &str| {
        let source = tempfile::tempdir().unwrap();
        let text = format!(
            "cmake_minimum_required(VERSION 3.16)\nproject(p LANGUAGES C)\nfind_package(welm {version} REQUIRED)\n\
             add_executable(p p.c)\ntarget_link_libraries(p PRIVATE welm::welm)\n"
        );
        fs::write(source.path().join("CMakeLists.txt"), text).unwrap();
        let program =
            "#include <welm.h>\n#include <stdio.h>\nint main(void) { return puts(welm_version()) < 0; }\n";
        fs::write(source.path().join("p.c"), program).unwrap();
        source
    };
    let source = project("0.1.0 EXACT");
    let (build, built) = cmake(source.path(), moved.path(), &[], &[]);
    built.unwrap();
    let program = build.path().join("p");
    assert!(run(Command::new("readelf").arg("-d").arg(&program)).contains(moved.path().to_str().unwrap()));
    assert_eq!(run(&mut Command::new(&program)).trim(), env!("CARGO_PKG_VERSION"));

    for version in ["0", "0.1", "", "0.1...0.3", "0...1", "0.0...<0.2"] {
        cmake(project(version).path(), moved.path(), &[], &[]).1.unwrap_or_else(|e| panic!("{version}: {e}"));
    }
    for version in ["0.2", "1.0", "1", "0.0", "0.1.7", "0.1.1...0.3", "0.0...<0.1.0"] {
        let (_build, built) = cmake(project(version).path(), moved.path(), &[], &[]);
        let error = built.unwrap_err();
        assert!(error.contains("version: 0.1.0") || error.contains("0.1.0"), "{version}: {error}");
    }
    // Without the shared library the static one is taken; without that, the message says so.
    for library in ["libwelm.so", "libwelm.so.0.1", "libwelm.so.0.1.0"] {
        fs::remove_file(libdir(moved.path()).join(library)).unwrap();
    }
    let (build, built) = cmake(source.path(), moved.path(), &[], &[]);
    built.unwrap();
    assert_eq!(run(&mut Command::new(build.path().join("p"))).trim(), env!("CARGO_PKG_VERSION"));
    fs::remove_file(libdir(moved.path()).join("libwelm.a")).unwrap();
    let (_build, built) = cmake(source.path(), moved.path(), &[], &[]);
    assert!(built.unwrap_err().contains("expected include/welm.h and a library under"));
}

/// Configures a folder with this in its `CMakeLists.txt`, and this in that of `sub`, which may be empty.
fn nested(top: &str, sub: &str, prefix: &Path) -> (TempDir, Result<(), String>) {
    let source = tempfile::tempdir().unwrap();
    let head = "cmake_minimum_required(VERSION 3.16)\nproject(p LANGUAGES C)\n";
    fs::write(source.path().join("CMakeLists.txt"), format!("{head}{top}\nadd_subdirectory(sub)\n")).unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/CMakeLists.txt"), sub).unwrap();
    let program = "#include <welm.h>\nint main(void) { return welm_version()[0] != '0'; }\n";
    fs::write(source.path().join("p.c"), program).unwrap();
    cmake(source.path(), prefix, &[], &[])
}

#[test]
fn a_later_find_package_gets_what_it_asks_for_or_an_error() {
    let find = "find_package(welm 0.1 REQUIRED)\n";
    let program = |name: &str, library: &str| {
        format!(
            "add_executable({name} ${{CMAKE_SOURCE_DIR}}/p.c)\ntarget_link_libraries({name} PRIVATE {library})\n"
        )
    };
    let (on, off) = ("set(WELM_USE_STATIC ON)\n", "set(WELM_USE_STATIC OFF)\n");
    // A second find_package gives the same targets; the other kind is linked by its name.
    let top = format!("{find}{find}{}", program("a", "welm::welm"));
    let sub = format!("{find}{}{}", program("b", "welm::welm"), program("c", "welm::static"));
    let (build, built) = nested(&top, &sub, &PREFIX);
    built.unwrap();
    for (path, linkage) in [("a", Shared), ("sub/b", Shared), ("sub/c", Static)] {
        check_linkage(&build.path().join(path), linkage);
    }
    // If the first find_package is in a folder below or beside, each folder has its own targets.
    let (build, built) = nested("", &format!("{on}{find}{}", program("b", "welm::welm")), &PREFIX);
    built.unwrap();
    check_linkage(&build.path().join("sub/b"), Static);
    for (first, then, says) in [("", on, "WELM_USE_STATIC is on"), (on, off, "WELM_USE_STATIC is off")] {
        let (_build, built) = nested(&format!("{first}{find}"), &format!("{then}{find}"), &PREFIX);
        let error = built.unwrap_err();
        let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(error.contains(says) && error.contains("from an earlier find_package"), "{error}");
    }
    for same in [format!("{on}{find}"), format!("{off}{find}")] {
        nested(&same, find, &PREFIX).1.unwrap();
        nested(&same, &same, &PREFIX).1.unwrap();
    }
    // Another installation, asked for in a folder below.
    let moved = tempfile::tempdir().unwrap();
    run(Command::new("cp").arg("-a").arg(PREFIX.join(".")).arg(moved.path()));
    let other = format!("set(CMAKE_PREFIX_PATH {})\nunset(welm_DIR CACHE)\n{find}", moved.path().display());
    let error = nested(find, &other, &PREFIX).1.unwrap_err();
    assert!(error.contains("welm::shared is") || error.contains("welm::static is"), "{error}");
}

#[test]
fn a_program_without_any_shared_library() {
    let check = |program: &Path| {
        let dynamic = run(Command::new("readelf").arg("-d").arg(program));
        assert!(!dynamic.contains("(NEEDED)"), "{dynamic}");
        consume(Command::new(program), false);
    };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("consumer");
    let sources = SOURCES.map(|name| data("tests/capi").join(format!("{name}.c")));
    let mut command = Command::new("gcc");
    command.arg("-static").args(STRICT).args(sources).arg("-o").arg(&program);
    // As in the README.
    command.args(linking(Static).into_iter().filter(|flag| flag != "-lgcc_s"));
    run(&mut command);
    check(&program);
    let options = [cmake_linkage(Static), "-DCMAKE_EXE_LINKER_FLAGS=-static".into()];
    let (build, built) = cmake(&data("tests/capi"), &PREFIX, &options, &[]);
    built.unwrap();
    check(&build.path().join("consumer"));
}

#[test]
fn only_its_own_symbols_are_exported() {
    let library = libdir(&PREFIX).join("libwelm.so");
    let listed = run(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(&library));
    let mut symbols: Vec<_> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    symbols.sort_unstable();
    let header = fs::read_to_string(data("include/welm.h")).unwrap();
    let mut declared: Vec<_> = header
        .lines()
        .filter(|line| !line.starts_with([' ', '#', '/', '}']) && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .collect();
    declared.sort_unstable();
    assert!(declared.len() > 40);
    assert_eq!(symbols, declared, "what libwelm.so exports, and what welm.h declares");
}

#[test]
fn the_header_is_that_of_any_c_and_cpp() {
    let header = data("include/welm.h");
    for (compiler, language, standards) in
        [("gcc", "c", ["c99", "c11", "c17"]), ("g++", "c++", ["c++11", "c++17", "c++20"])]
    {
        for standard in standards {
            let mut command = Command::new(compiler);
            command.args([
                "-x",
                language,
                &format!("-std={standard}"),
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pedantic",
            ]);
            run(command.arg("-fsyntax-only").arg("-include").arg(&header).arg("/dev/null"));
        }
    }
}

/// The blocks of C in welm-capi/README.md, compiled and run in the repository's root.
#[test]
fn the_readme_s_example_runs() {
    for block in code_blocks("welm-capi/README.md", "c") {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("example.c"), folder.path().join("example"));
        fs::write(&source, block).unwrap();
        let mut command = Command::new("gcc");
        run(command.args(STRICT).arg(&source).arg("-o").arg(&program).args(linking(Shared)));
        let printed = run(Command::new(&program).current_dir(data("")));
        assert!(
            printed.contains('\u{ff0c}') || printed.contains('\u{3002}'),
            "expected verse, got {printed}"
        );
    }
}
