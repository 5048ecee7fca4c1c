//! Compiles `cuda/*.cu` for the feature `fatbin`; without it there is nothing to do.
//!
//! `fatbin-if-found` is for packages whose features nobody chooses, such as a wheel that pip builds. If a compiler is
//! found, it is the same as `fatbin`. If none is found, it warns and builds the crate without device code.
//!
//! Every `.cu` file becomes a fatbin of its own. `code.rs` in OUT_DIR is a table of them (`include_bytes!`), which
//! `src/cuda/code.rs` includes.
//!
//! There are three reasons not to link one fatbin. The kernels of `sm_90a` need whole-program compilation. After a
//! change only one file is compiled again. And the driver loads only the modules that are used.
//!
//! OUT_DIR has three files for each `.cu` file. With `WELM_CUDA_TRAP=1` they are in the folder `trap` there. Cargo gives
//! this script another OUT_DIR for other features, and for clippy. So the files of the others are taken if they are what
//! would be compiled.
//!
//! - `<stem>.fatbin`
//! - `<stem>.log`: what ptxas says of registers, shared memory and spills
//! - `<stem>.stamp`: a hash of everything that the fatbin was made from; if it is the same, nothing is compiled
//!
//! `tests/build.rs` includes this file and tests its functions.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const NVCC: &str = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };

const HOW_TO_GET_NVCC: &str = "the feature `fatbin` needs nvcc of CUDA 12 or newer, and there is none in NVCC, \
    CUDA_HOME, CUDA_PATH, PATH or the active Python environment; `pip install nvidia-cuda-nvcc \
    nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt nvidia-nvvm` installs one";

/// The first with `sm_90a`, `wgmma` and `setmaxnreg`.
const OLDEST: (u32, u32) = (12, 0);

/// The first with `sm_100` and `sm_120`.
const BLACKWELL: (u32, u32) = (12, 8);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let on = |feature| env::var_os(feature).is_some();
    let strict = on("CARGO_FEATURE_FATBIN");
    if !strict && !on("CARGO_FEATURE_FATBIN_IF_FOUND") {
        return;
    }
    if let Err(error) = build(strict) {
        // Cargo shows what follows as errors and fails the build; a panic would bury it under a backtrace.
        for line in error.lines() {
            println!("cargo::error={line}");
        }
    }
}

/// Compiles and embeds. A missing compiler is an error only if `strict`. It always is an error if NVCC names a
/// compiler that cannot be used, or if the compiler fails.
fn build(strict: bool) -> Result<(), String> {
    // nvcc itself reads the last two.
    for name in ["WELM_CUDA_ARCHS", "WELM_CUDA_TRAP", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=cuda");
    let (nvcc, asked) = find_nvcc(env::var_os, python_sites);
    for name in &asked {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let chosen = asked.len() == 1;
    let usable = nvcc.and_then(|nvcc| {
        println!("cargo::rerun-if-changed={}", nvcc.display());
        let version = version_of(&nvcc)?;
        let release = release_of(&version, &nvcc)?;
        Ok((nvcc, version, release))
    });
    let (nvcc, version, release) = match usable {
        Err(reason) if !strict && !chosen => {
            println!("cargo::warning=built without CUDA kernels: {reason}");
            return Ok(());
        }
        usable => usable?,
    };
    if !strict {
        // From here on the same crate as with the strict feature.
        println!("cargo::rustc-cfg=feature=\"fatbin\"");
    }
    let text = |name| env::var_os(name).as_deref().map(OsStr::to_string_lossy).map(String::from);
    let archs = parse_archs(text("WELM_CUDA_ARCHS").as_deref(), release)?;
    let trap = parse_trap(text("WELM_CUDA_TRAP").as_deref())?;

    let dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // Two folders, so that a build of one kind does not make the files of the other kind out of date.
    let out = if trap { dir.join("trap") } else { dir.clone() };
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let flags = flags(&archs, release, trap);
    let others = others(&dir).into_iter().map(|dir| if trap { dir.join("trap") } else { dir }).collect();
    let compiler = Compiler { nvcc, version, flags, cuda: PathBuf::from("cuda"), out, others };
    let stems = compiler.compile_all(jobs)?;
    write(&dir.join("code.rs"), table(&archs, release, &compiler.out, &stems).as_bytes())
}

// ---- finding nvcc ----------------------------------------------------------------------------------------

/// nvcc, and the environment variables that were read until it was found. Cargo has to run this script again only if
/// one of these changes.
pub(crate) fn find_nvcc(
    lookup: impl Fn(&'static str) -> Option<OsString>,
    python_sites: impl FnOnce() -> Vec<PathBuf>,
) -> (Result<PathBuf, String>, Vec<&'static str>) {
    let mut asked = Vec::new();
    let mut var = |name| {
        asked.push(name);
        lookup(name).filter(|value| !value.is_empty())
    };
    let found = (|| {
        if let Some(nvcc) = var("NVCC").map(PathBuf::from) {
            // The user chose this one, so no other one is looked for.
            return if nvcc.is_file() { Ok(nvcc) } else { Err(format!("NVCC: {nvcc:?} is not a file")) };
        }
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            let home = var(name).map(PathBuf::from);
            if let Some(nvcc) = home.map(|home| home.join("bin").join(NVCC)).filter(|path| path.is_file()) {
                return Ok(nvcc);
            }
        }
        let path = var("PATH").unwrap_or_default();
        if let Some(nvcc) = env::split_paths(&path).map(|dir| dir.join(NVCC)).find(|path| path.is_file()) {
            return Ok(nvcc);
        }
        let active = var("VIRTUAL_ENV").map(PathBuf::from).into_iter().flat_map(|root| sites_of(&root));
        if let Some(nvcc) = active.into_iter().find_map(|site| wheel_nvcc(&site)) {
            return Ok(nvcc);
        }
        python_sites().iter().find_map(|site| wheel_nvcc(site)).ok_or_else(|| HOW_TO_GET_NVCC.to_owned())
    })();
    (found, asked)
}

/// The folders for packages of a virtual environment.
fn sites_of(root: &Path) -> Vec<PathBuf> {
    let mut sites: Vec<_> = children(&root.join("lib")).map(|dir| dir.join("site-packages")).collect();
    sites.push(root.join("Lib").join("site-packages"));
    sites
}

/// nvcc of the wheel `nvidia-cuda-nvcc`: in `nvidia/cu13` from CUDA 13 on. Before, it was in `nvidia/cuda_nvcc`, and
/// most versions had no nvcc, only its parts.
fn wheel_nvcc(site: &Path) -> Option<PathBuf> {
    let number = |dir: &Path| dir.file_name()?.to_str()?.strip_prefix("cu")?.parse::<u32>().ok();
    let dirs = children(&site.join("nvidia"));
    let found = dirs.filter(|dir| dir.join("bin").join(NVCC).is_file()).max_by_key(|dir| number(dir))?;
    Some(found.join("bin").join(NVCC))
}

/// The folders for packages of the Python on PATH.
fn python_sites() -> Vec<PathBuf> {
    const ASK: &str = "import site, sysconfig\n\
        for name in 'purelib', 'platlib': print(sysconfig.get_path(name))\n\
        print(site.getusersitepackages())";
    for python in ["python3", "python"] {
        if let Ok(answer) = Command::new(python).args(["-c", ASK]).output()
            && answer.status.success()
        {
            return String::from_utf8_lossy(&answer.stdout).lines().map(PathBuf::from).collect();
        }
    }
    Vec::new()
}

/// The paths in a folder, sorted; none if it is not a folder.
fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter()
}

fn version_of(nvcc: &Path) -> Result<String, String> {
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", nvcc.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `(13, 0)` from "... release 13.0, V13.0.88 ...".
pub(crate) fn release_of(version: &str, nvcc: &Path) -> Result<(u32, u32), String> {
    let number = version.split_once("release ").and_then(|(_, rest)| rest.split(',').next());
    let parse = |number: &str| {
        let (major, minor) = number.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let release =
        number.and_then(parse).ok_or_else(|| format!("{}: no nvcc: {version:?}", nvcc.display()))?;
    if release < OLDEST {
        let ((major, minor), nvcc) = (release, nvcc.display());
        return Err(format!("{nvcc}: expected CUDA {}.{} or newer, got {major}.{minor}", OLDEST.0, OLDEST.1));
    }
    Ok(release)
}

// ---- architectures and flags -----------------------------------------------------------------------------

/// What is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archs {
    /// `sm_` names without the prefix.
    pub(crate) cubins: Vec<String>,
    /// PTX of `compute_80`, which the driver compiles for devices that have no cubin.
    pub(crate) ptx: bool,
}

/// `WELM_CUDA_ARCHS`, a list like `80,90a,ptx`; without it all that this release of nvcc knows.
pub(crate) fn parse_archs(value: Option<&str>, release: (u32, u32)) -> Result<Archs, String> {
    let all = if release < BLACKWELL { "80,86,89,90a,ptx" } else { "80,86,89,90a,100,120,ptx" };
    let value = value.map(str::trim).filter(|value| !value.is_empty()).unwrap_or(all);
    let mut archs = Archs { cubins: Vec::new(), ptx: false };
    for name in value.split(',').map(str::trim) {
        let number = name.strip_suffix('a').unwrap_or(name).parse::<u32>().ok();
        let expected = match number {
            _ if name == "ptx" => {
                archs.ptx = true;
                continue;
            }
            Some(90) if name == "90" => "90a, without which 9.0 lacks its matrix instructions",
            Some(80..) => {
                if !archs.cubins.iter().any(|cubin| cubin == name) {
                    archs.cubins.push(name.to_owned());
                }
                continue;
            }
            _ => "a list of 80, 86, 89, 90a, 100, 120, other ones, ptx",
        };
        return Err(format!("WELM_CUDA_ARCHS={value}: expected {expected}; got {name:?}"));
    }
    Ok(archs)
}

/// `WELM_CUDA_TRAP`: whether a wait that never ends becomes an error (`barrier_wait` in `ptx.cuh`). It is for tests
/// only, because it adds instructions to every such wait.
pub(crate) fn parse_trap(value: Option<&str>) -> Result<bool, String> {
    match value.unwrap_or_default() {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        other => Err(format!("WELM_CUDA_TRAP={other}: expected 0 or 1")),
    }
}

/// The flags of every file.
pub(crate) fn flags(archs: &Archs, release: (u32, u32), trap: bool) -> Vec<String> {
    let common = ["-std=c++17", "-O3", "--fatbin", "-lineinfo", "-Xptxas=-v"];
    // Warnings are errors, because a warning can mean that launch bounds are ignored or that wgmma is serialised. A
    // deprecated architecture is no reason to fail.
    let warnings = ["-Werror=all-warnings", "-Wno-deprecated-gpu-targets"];
    let mut flags: Vec<_> = common.into_iter().chain(warnings).map(str::to_owned).collect();
    // The files are a fifth of the default's size. Drivers can read them from CUDA 12.4 on. Code of nvcc 12.x also runs
    // on older drivers, so it is compiled without this flag.
    if release.0 >= 13 {
        flags.push("--compress-mode=size".to_owned());
    }
    if trap {
        flags.push("-DWELM_TRAP".to_owned());
    }
    for cubin in &archs.cubins {
        flags.push(format!("-gencode=arch=compute_{cubin},code=sm_{cubin}"));
    }
    if archs.ptx {
        flags.push("-gencode=arch=compute_80,code=compute_80".to_owned());
    }
    flags
}

// ---- compiling -------------------------------------------------------------------------------------------

/// nvcc for the files of a folder.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) nvcc: PathBuf,
    /// All that it says of its version.
    pub(crate) version: String,
    pub(crate) flags: Vec<String>,
    /// The folder of sources.
    pub(crate) cuda: PathBuf,
    /// The folder of results.
    pub(crate) out: PathBuf,
    /// Folders that may have the same results already.
    pub(crate) others: Vec<PathBuf>,
}

impl Compiler {
    /// Compiles those files that are not up to date, `jobs` at a time, and gives the stems of all.
    pub(crate) fn compile_all(&self, jobs: usize) -> Result<Vec<String>, String> {
        let sources: Vec<_> =
            children(&self.cuda).filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
        let mut stale = Vec::new();
        for source in &sources {
            let stamp = self.stamp(source)?;
            if !self.is_there(&self.out, source, &stamp) && !self.takes_over(source, &stamp) {
                stale.push((source, stamp));
            }
        }
        // The longest first, so that it does not start last.
        stale.sort_by_key(|(source, _)| std::cmp::Reverse(fs::metadata(source).map_or(0, |data| data.len())));
        let workers = jobs.clamp(1, stale.len().max(1));
        let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((source, stamp)) = stale.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // If there are more cores than files, a file is compiled for several architectures at once.
                        if let Err(error) = self.compile(source, stamp, jobs / workers) {
                            errors.lock().unwrap().push(error);
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().unwrap();
        if errors.is_empty() {
            Ok(sources.iter().map(|path| stem(path)).collect())
        } else {
            Err(errors.join("\n"))
        }
    }

    /// Whether a folder has the results of this stamp.
    fn is_there(&self, folder: &Path, source: &Path, stamp: &str) -> bool {
        let result = |kind| result(folder, source, kind);
        fs::read_to_string(result("stamp")).is_ok_and(|old| old == stamp)
            && ["fatbin", "log"].iter().all(|kind| result(kind).is_file())
    }

    /// Copies the results of this stamp from another folder, if one has them.
    fn takes_over(&self, source: &Path, stamp: &str) -> bool {
        self.others.iter().filter(|folder| self.is_there(folder, source, stamp)).any(|folder| {
            // The stamp comes last, as after compiling.
            ["fatbin", "log", "stamp"]
                .iter()
                .all(|kind| fs::copy(result(folder, source, kind), self.result(source, kind)).is_ok())
        })
    }

    fn compile(&self, source: &Path, stamp: &str, threads: usize) -> Result<(), String> {
        let at = self.result(source, "stamp");
        if at.exists() {
            fs::remove_file(&at).map_err(|error| format!("{}: {error}", at.display()))?;
        }
        let mut command = Command::new(&self.nvcc);
        command.args(&self.flags).arg(format!("--threads={}", threads.max(1)));
        command.arg("-I").arg(&self.cuda).arg("-o").arg(self.result(source, "fatbin")).arg(source);
        let output = command.output().map_err(|error| format!("{}: {error}", self.nvcc.display()))?;
        let log = [output.stdout, output.stderr].concat();
        write(&self.result(source, "log"), &log)?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&log);
            let report = |line: &&str| line.starts_with("ptxas info") || line.contains("bytes stack frame");
            let rest: Vec<_> = log.lines().filter(|line| !report(line)).collect();
            return Err(format!("{}: nvcc: {}\n{}", source.display(), output.status, rest.join("\n")));
        }
        write(&at, stamp.as_bytes())
    }

    /// A hash of everything that the fatbin depends on: compiler, flags and sources.
    pub(crate) fn stamp(&self, source: &Path) -> Result<String, String> {
        let mut hasher = DefaultHasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        };
        add(self.version.as_bytes());
        self.flags.iter().for_each(|flag| add(flag.as_bytes()));
        for name in ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
            add(env::var_os(name).unwrap_or_default().as_encoded_bytes());
        }
        for path in included(source, &self.cuda)? {
            add(path.as_os_str().as_encoded_bytes());
            add(&read(&path)?);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }

    fn result(&self, source: &Path, kind: &str) -> PathBuf {
        result(&self.out, source, kind)
    }
}

fn result(folder: &Path, source: &Path, kind: &str) -> PathBuf {
    folder.join(stem(source)).with_extension(kind)
}

/// The folders that this script wrote into in other runs. Cargo names OUT_DIR `build/<package>-<hash>/out`.
pub(crate) fn others(out: &Path) -> Vec<PathBuf> {
    let (Some(own), Some(package)) = (out.parent(), option_env!("CARGO_PKG_NAME")) else { return Vec::new() };
    let is_ours = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str);
        let hash = name.and_then(|name| name.strip_prefix(package)?.strip_prefix('-'));
        path != own && hash.is_some_and(|hash| hash.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let folders = own.parent().into_iter().flat_map(|build| children(build).collect::<Vec<_>>());
    folders.filter(|path| is_ours(path)).map(|path| path.join("out")).filter(|path| path.is_dir()).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// `source` and the files of `dir` that it includes, directly or not.
pub(crate) fn included(source: &Path, dir: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![source.to_owned()]);
    while let Some(path) = open.pop() {
        let text = read(&path)?;
        for line in String::from_utf8_lossy(&text).lines() {
            let name = line.trim_start().strip_prefix('#').map(str::trim_start);
            let name = name.and_then(|line| line.strip_prefix("include")).map(str::trim_start);
            let name = name.and_then(|line| line.strip_prefix(['"', '<'])?.split(['"', '>']).next());
            if let Some(file) = name.map(|name| dir.join(name)).filter(|file| file.is_file())
                && !seen.contains(&file)
            {
                open.push(file);
            }
        }
        seen.insert(path);
    }
    Ok(seen)
}

/// The source of `code.rs`, for fatbins in a folder.
pub(crate) fn table(archs: &Archs, release: (u32, u32), dir: &Path, stems: &[String]) -> String {
    let Archs { cubins, ptx } = archs;
    let mut text = format!("Code {{ release: {release:?}, cubins: &{cubins:?}, ptx: {ptx}, files: &[\n");
    for stem in stems {
        let fatbin = dir.join(stem).with_extension("fatbin");
        text += &format!("({stem:?}, &Aligned(*include_bytes!({fatbin:?}))),\n");
    }
    text + "] }\n"
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}
