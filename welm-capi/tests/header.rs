//! `include/welm.h` is what cbindgen makes of this crate. The comment of each function says what a caller must know.

use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let mut source = cbindgen::Builder::new().with_config(config);
    // The sources by name, in the order of the header. So cbindgen needs no cargo, and adds nothing of other crates.
    for file in SOURCES {
        source = source.with_src(root.join("src").join(format!("{file}.rs")));
    }
    let mut header = Vec::new();
    source.generate().expect("the sources parse").write(&mut header);
    String::from_utf8(header).expect("a header is text")
}

const SOURCES: [&str; 16] = [
    "version", "failure", "error", "text", "estimate", "load", "model", "request", "list", "generate",
    "stream", "score", "tokens", "chat", "stats", "log",
];

/// Each function of the header: its comment and its declaration.
fn functions(header: &str) -> Vec<(&str, &str)> {
    let all = header.split("\n\n").filter_map(|block| {
        let (comment, declaration) = block.trim().strip_prefix("/**")?.split_once("*/\n")?;
        let function = !declaration.starts_with("typedef") && declaration.contains("welm_");
        (function && declaration.ends_with(");")).then_some((comment, declaration))
    });
    all.collect()
}

#[test]
fn comments_say_what_a_caller_must_know() {
    let header = generated();
    let functions = functions(&header);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources =
        SOURCES.map(|file| std::fs::read_to_string(root.join("src").join(format!("{file}.rs"))).unwrap());
    let exported: usize = sources.iter().map(|source| source.matches("#[unsafe(no_mangle)]").count()).sum();
    assert_eq!(functions.len(), exported, "all exported functions are declared");
    for (comment, declaration) in functions {
        let mut wanted = vec!["ownership", "threads", "NULL"];
        if declaration.contains("char ") || declaration.contains("welm_prompt prompt") {
            wanted.push("encoding");
        }
        if declaration.contains("welm_error **") {
            wanted.push("errors");
        }
        for word in wanted {
            assert!(comment.contains(&format!("\n * - {word}: ")), "`{word}` is not said of: {declaration}");
        }
    }
}

#[test]
fn the_cmake_package_has_the_same_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cmake/welm-config-version.cmake");
    let line = format!("set(PACKAGE_VERSION \"{}\")", env!("CARGO_PKG_VERSION"));
    let file = std::fs::read_to_string(&path).unwrap();
    assert!(file.lines().any(|l| l == line), "expected `{line}` in {}", path.display());
}

#[test]
fn the_header_is_up_to_date() {
    let path = repository().join("include/welm.h");
    let generated = generated();
    if std::env::var_os("WELM_UPDATE_HEADER").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(
        committed == generated,
        "include/welm.h is not what the sources say, from line {} on; write it again with\n    \
         WELM_UPDATE_HEADER=1 cargo test -p welm-capi --test header",
        1 + differs.unwrap_or(committed.lines().count().min(generated.lines().count())),
    );
}
