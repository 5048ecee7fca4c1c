//! The functions of the build script. No nvcc is needed.

#[allow(dead_code, reason = "its main is Cargo's to call")]
#[path = "../build.rs"]
mod script;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use script::{Compiler, find_nvcc, flags, included, others, parse_archs, parse_trap, release_of, table};
use tempfile::TempDir;

const NVCC: &str = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };

/// A folder, and an environment of variables that name folders in it.
struct Place {
    dir: TempDir,
    vars: HashMap<&'static str, OsString>,
}

impl Place {
    fn new() -> Self {
        Place { dir: tempfile::tempdir().unwrap(), vars: HashMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An nvcc in a folder.
    fn nvcc(&self, dir: &str) -> PathBuf {
        fs::create_dir_all(self.path(dir)).unwrap();
        fs::write(self.path(dir).join(NVCC), "").unwrap();
        self.path(dir).join(NVCC)
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.vars.insert(name, self.path(value).into());
    }

    fn find(&self, sites: &[&str]) -> (Result<PathBuf, String>, Vec<&'static str>) {
        let sites = sites.iter().map(|site| self.path(site)).collect();
        find_nvcc(|name| self.vars.get(name).cloned(), || sites)
    }
}

#[test]
fn nvcc_is_looked_for_in_order() {
    let mut place = Place::new();
    let asked = ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "VIRTUAL_ENV"];

    // From the place that is looked at last to the first.
    let (none, vars) = place.find(&["site"]);
    assert!(none.unwrap_err().contains("pip install nvidia-cuda-nvcc"));
    assert_eq!(vars, asked);
    let site = place.nvcc("site/nvidia/cu13/bin");
    assert_eq!(place.find(&["other", "site"]), (Ok(site), asked.to_vec()));
    let lib = if cfg!(windows) { "env/Lib/site-packages" } else { "env/lib/python3.11/site-packages" };
    let wheel = place.nvcc(&format!("{lib}/nvidia/cu13/bin"));
    place.set("VIRTUAL_ENV", "env");
    assert_eq!(place.find(&["site"]), (Ok(wheel), asked.to_vec()));
    let path = place.nvcc("two");
    let dirs = ["one", "two"].map(|dir| place.path(dir));
    place.vars.insert("PATH", std::env::join_paths(dirs).unwrap());
    assert_eq!(place.find(&["site"]), (Ok(path), asked[..4].to_vec()));
    let cuda_path = place.nvcc("path/bin");
    place.set("CUDA_PATH", "path");
    assert_eq!(place.find(&[]), (Ok(cuda_path.clone()), asked[..3].to_vec()));
    // A toolkit without a compiler, or an empty variable, is skipped.
    place.set("CUDA_HOME", "runtime only");
    assert_eq!(place.find(&[]).0, Ok(cuda_path));
    let home = place.nvcc("home/bin");
    place.set("CUDA_HOME", "home");
    place.vars.insert("NVCC", OsString::new());
    assert_eq!(place.find(&[]), (Ok(home), asked[..2].to_vec()));
    let chosen = place.nvcc("chosen");
    place.vars.insert("NVCC", chosen.clone().into());
    assert_eq!(place.find(&[]), (Ok(chosen), asked[..1].to_vec()));
    // If the chosen compiler is missing, no other one is taken.
    place.set("NVCC", "gone");
    assert!(place.find(&["site"]).0.unwrap_err().contains("is not a file"));
}

#[test]
fn the_newest_wheel_is_taken() {
    let place = Place::new();
    for dir in ["cuda_nvcc", "cu9", "cu13", "cu14"] {
        let nvcc = place.nvcc(&format!("site/nvidia/{dir}/bin"));
        assert_eq!(place.find(&["site"]).0, Ok(nvcc), "{dir}");
    }
    fs::create_dir_all(place.path("site/nvidia/cu15/bin")).unwrap();
    let nvcc = place.find(&["site"]).0.unwrap();
    assert_eq!(nvcc, place.path("site/nvidia/cu14/bin").join(NVCC), "cu15 has no nvcc");
}

#[test]
fn releases_are_read_and_checked() {
    let nvcc = Path::new("nvcc");
    let release = |text: &str| release_of(text, nvcc);
    assert_eq!(release("Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda"), Ok((13, 0)));
    assert_eq!(release("release 12.10, V12.10.1"), Ok((12, 10)));
    let error = release("release 11.8, V11.8.89").unwrap_err();
    assert_eq!(error, "nvcc: expected CUDA 12.0 or newer, got 11.8");
    for text in ["", "release", "release x.y, V", "clang version 18"] {
        assert!(release(text).unwrap_err().contains("no nvcc"), "{text}");
    }
}

#[test]
fn archs_are_what_the_variable_says() {
    let archs = |value: &str| {
        let archs = parse_archs(Some(value), (13, 0))?;
        Ok::<_, String>((archs.cubins.join(" "), archs.ptx))
    };
    let all = Ok(("80 86 89 90a 100 120".to_owned(), true));
    assert_eq!(archs("80,86,89,90a,100,120,ptx"), all);
    assert_eq!(archs(" "), all, "empty is not set");
    // What the compiler knows.
    for (release, list) in [
        ((12, 0), "80,86,89,90a,ptx"),
        ((12, 7), "80,86,89,90a,ptx"),
        ((12, 8), "80,86,89,90a,100,120,ptx"),
        ((13, 0), "80,86,89,90a,100,120,ptx"),
    ] {
        assert_eq!(parse_archs(None, release), parse_archs(Some(list), (13, 0)), "{release:?}");
    }
    assert_eq!(archs("90a"), Ok(("90a".to_owned(), false)));
    assert_eq!(archs("80, ptx"), Ok(("80".to_owned(), true)));
    assert_eq!(archs("ptx"), Ok((String::new(), true)));
    assert_eq!(archs("89,120a,89"), Ok(("89 120a".to_owned(), false)));
    for (value, part) in [
        ("90", "expected 90a"),
        ("75", "got \"75\""),
        ("80,,86", "got \"\""),
        ("80;86", "got \"80;86\""),
        ("sm_80", "expected a list of 80, 86, 89, 90a"),
        ("90ab", "got \"90ab\""),
        ("-80", "got \"-80\""),
        ("PTX", "got \"PTX\""),
    ] {
        let error = archs(value).unwrap_err();
        assert!(error.starts_with(&format!("WELM_CUDA_ARCHS={value}: ")) && error.contains(part), "{error}");
    }
}

#[test]
fn traps_are_on_off_or_an_error() {
    let off = [None, Some(""), Some("0")].map(parse_trap);
    assert_eq!((off, parse_trap(Some("1"))), ([Ok(false), Ok(false), Ok(false)], Ok(true)));
    assert_eq!(parse_trap(Some("yes")), Err("WELM_CUDA_TRAP=yes: expected 0 or 1".to_owned()));
}

#[test]
fn flags_name_every_architecture() {
    let archs = parse_archs(Some("80,90a,100,ptx"), (13, 0)).unwrap();
    let flags = |archs, release| flags(archs, release, false);
    let new = flags(&archs, (13, 0));
    for flag in [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_80,code=compute_80",
        "--compress-mode=size",
    ] {
        assert!(new.iter().any(|other| other == flag), "{flag}");
    }
    // Drivers of CUDA 12.0 to 12.3 can't read that compression.
    let old: Vec<_> = new.iter().filter(|flag| !flag.starts_with("--compress")).cloned().collect();
    assert_eq!(flags(&archs, (12, 9)), old);
    let cubin = flags(&parse_archs(Some("90a"), (13, 0)).unwrap(), (13, 0));
    assert!(!cubin.iter().any(|flag| flag.contains("code=compute")));
    // Only what is built for tests traps.
    let trapping = script::flags(&archs, (13, 0), true);
    assert!(trapping.iter().any(|flag| flag == "-DWELM_TRAP"));
    assert_eq!(
        trapping.iter().filter(|flag| *flag != "-DWELM_TRAP").collect::<Vec<_>>(),
        Vec::from_iter(&new)
    );
}

#[test]
fn the_table_names_every_file() {
    let archs = parse_archs(Some("80,90a,ptx"), (13, 1)).unwrap();
    let dir = Path::new("one").join("two \"quoted\"");
    let text = table(&archs, (13, 1), &dir, &["gemm".to_owned(), "norm".to_owned()]);
    assert!(text.starts_with("Code { release: (13, 1), cubins: &[\"80\", \"90a\"], ptx: true, files: &["));
    for stem in ["gemm", "norm"] {
        let path = dir.join(format!("{stem}.fatbin"));
        let line = format!("(\"{stem}\", &Aligned(*include_bytes!({path:?}))),\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[test]
fn includes_are_followed() {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let found = included(&cuda.join("attention.cu"), &cuda).unwrap();
    let names = ["attention.cu", "attention.cuh", "ptx.cuh"].map(|name| cuda.join(name));
    assert_eq!(found, names.into());
    assert!(included(&cuda.join("missing.cu"), &cuda).unwrap_err().contains("missing.cu"));
}

/// Sources that include each other, and a compiler that is only a program's name.
fn sources(place: &Place) -> Compiler {
    fs::create_dir_all(place.path("cuda")).unwrap();
    fs::create_dir_all(place.path("out")).unwrap();
    for (name, text) in [
        ("a.cu", "#include \"shared.cuh\"\n"),
        ("b.cu", "  # include <other.cuh>\n#include <stdint.h>\n"),
        ("shared.cuh", "#include \"deep.cuh\"\n"),
        ("deep.cuh", "#include \"shared.cuh\"\n"), // a circle
        ("other.cuh", "// #include \"deep.cuh\"\n"),
    ] {
        fs::write(place.path("cuda").join(name), text).unwrap();
    }
    Compiler {
        nvcc: place.path("bin").join(NVCC),
        version: "release 13.0".to_owned(),
        flags: vec!["-O3".to_owned()],
        cuda: place.path("cuda"),
        out: place.path("out"),
        others: Vec::new(),
    }
}

#[test]
fn the_other_folders_of_the_script_are_found() {
    let place = Place::new();
    let names =
        ["welm-kernels-01ab", "welm-kernels-ff", "welm-kernels-sys", "welm-core-01ab", "welm-kernels-2"];
    for name in &names[..4] {
        fs::create_dir_all(place.path(name).join("out")).unwrap();
    }
    fs::create_dir_all(place.path(names[4])).unwrap();
    let found = others(&place.path(names[0]).join("out"));
    assert_eq!(found, [place.path("welm-kernels-ff").join("out")]);
    assert_eq!(others(Path::new("out")), [] as [PathBuf; 0]);
}

#[test]
fn a_stamp_changes_with_what_it_stands_for() {
    let place = Place::new();
    let mut compiler = sources(&place);
    let stamps = |compiler: &Compiler| {
        ["a.cu", "b.cu"].map(|name| compiler.stamp(&place.path("cuda").join(name)).unwrap())
    };
    let first = stamps(&compiler);
    assert_ne!(first[0], first[1]);
    assert_eq!(stamps(&compiler), first);
    // Which of the two a file belongs to.
    for (name, changed) in [
        ("a.cu", [true, false]),
        ("b.cu", [false, true]),
        ("shared.cuh", [true, false]),
        ("deep.cuh", [true, false]),
        ("other.cuh", [false, true]),
        ("new.cuh", [false, false]),
    ] {
        let path = place.path("cuda").join(name);
        let before = fs::read(&path).ok();
        fs::write(&path, [before.clone().unwrap_or_default(), b"\n".to_vec()].concat()).unwrap();
        let after = stamps(&compiler);
        assert_eq!([after[0] != first[0], after[1] != first[1]], changed, "{name}");
        before.map_or_else(|| fs::remove_file(&path), |text| fs::write(&path, text)).unwrap();
        assert_eq!(stamps(&compiler), first);
    }
    compiler.flags = vec!["-O2".to_owned()];
    let other_flags = stamps(&compiler);
    assert!(other_flags[0] != first[0] && other_flags[1] != first[1]);
    compiler.flags = vec!["-O".to_owned(), "3".to_owned()];
    assert!(![&first[0], &other_flags[0]].contains(&&stamps(&compiler)[0]));
    compiler.flags = vec!["-O3".to_owned()];
    compiler.version = "release 13.1".to_owned();
    assert_ne!(stamps(&compiler)[0], first[0]);
}

/// An nvcc that writes its arguments to the result and fails on `error`. The only test that starts a program:
/// one that is started while another thread has it open for writing is "busy".
#[cfg(unix)]
#[test]
fn only_what_changed_is_compiled() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    let mut compiler = sources(&place);
    let nvcc = place.nvcc("bin");
    let script = r#"#!/bin/sh
        for source; do :; done
        while [ "$1" != -o ]; do args="$args $1"; shift; done
        echo "ptxas info    : Used 8 registers" >&2
        if grep -q error "$source"; then echo "$source: an error" >&2; exit 2; fi
        echo "$args" > "$2"
        echo "$source" >> "${0%/*}/calls""#;
    fs::write(&nvcc, script).unwrap();
    fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755)).unwrap();
    let calls = |compiler: &Compiler, jobs: usize| {
        let _ = fs::remove_file(place.path("bin/calls"));
        let result = compiler.compile_all(jobs);
        let calls = fs::read_to_string(place.path("bin/calls")).unwrap_or_default();
        let stem = |line: &str| Path::new(line).file_stem().unwrap().to_str().unwrap().to_owned();
        let mut calls: Vec<_> = calls.lines().map(stem).collect();
        calls.sort();
        (result, calls.concat())
    };
    let both = Ok(vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(calls(&compiler, 4), (both.clone(), "ab".to_owned()));
    let out = |name: &str| fs::read_to_string(place.path("out").join(name)).unwrap();
    let args = format!(" -O3 --threads=2 -I {}\n", place.path("cuda").display());
    assert_eq!(out("a.fatbin"), args, "four jobs, two files");
    assert_eq!(out("b.log"), "ptxas info    : Used 8 registers\n");

    assert_eq!(calls(&compiler, 2), (both.clone(), String::new()));
    fs::write(place.path("cuda/deep.cuh"), "").unwrap();
    assert_eq!(calls(&compiler, 2), (both.clone(), "a".to_owned()));
    for kind in ["fatbin", "log", "stamp"] {
        fs::remove_file(place.path("out").join("b").with_extension(kind)).unwrap();
        assert_eq!(calls(&compiler, 1), (both.clone(), "b".to_owned()), "{kind}");
    }

    // What another folder has is copied, if it is the same.
    let other = Compiler { out: place.path("other"), others: vec![place.path("out")], ..sources(&place) };
    fs::create_dir(&other.out).unwrap();
    fs::write(place.path("cuda/b.cu"), "// changed").unwrap();
    fs::write(place.path("cuda/deep.cuh"), "").unwrap();
    assert_eq!(calls(&other, 2), (both.clone(), "b".to_owned()));
    assert_eq!(
        fs::read(place.path("other/a.fatbin")).unwrap(),
        fs::read(place.path("out/a.fatbin")).unwrap()
    );
    assert_eq!(calls(&other, 2), (both.clone(), String::new()));

    // A file that does not compile says so each time, and holds up no other.
    fs::write(place.path("cuda/b.cu"), "error").unwrap();
    fs::write(place.path("cuda/a.cu"), "").unwrap();
    for compiled in ["a", ""] {
        let (result, calls) = calls(&compiler, 2);
        let error = result.unwrap_err();
        assert!(
            error.contains("b.cu: nvcc: exit status: 2\n") && error.contains("b.cu: an error"),
            "{error}"
        );
        assert!(!error.contains("ptxas info"), "{error}");
        assert_eq!(calls, compiled);
    }
    fs::write(place.path("cuda/b.cu"), "").unwrap();
    assert_eq!(calls(&compiler, 2), (both, "b".to_owned()));
    compiler.nvcc = place.path("gone");
    fs::write(place.path("cuda/a.cu"), "// changed").unwrap();
    assert!(compiler.compile_all(2).unwrap_err().contains("gone"));
}
