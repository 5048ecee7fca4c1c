//! Tests of the engine in a process with limits, forks and signals. There is always an answer or a typed error; the
//! process never ends or hangs.
//!
//! A limit is for ever, and so are a fork and a signal, so each case is a process of its own: this program again, which
//! runs the test [`child`] alone and prints a line with `RESULT`.
#![cfg(target_os = "linux")]

use std::fs;
use std::mem::zeroed;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use welm_core::{
    Device, Dtype, Error, GenerateOptions, LoadOptions, LoadProgress, Message, Model, Result, quantize,
};
use welm_tests::{fixture, nano, pins};

/// On the CPU, because the limits are for it, with two threads on any machine.
fn options() -> LoadOptions {
    LoadOptions { device: Device::Cpu, threads: Some(2), cache_tokens: Some(1024), ..LoadOptions::default() }
}

// Parents.

/// This program again, to do `what`; `around` is a program with arguments that runs it.
fn again(around: &[&str], what: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let mut words = around.iter().copied().chain([own]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("WELM_TEST_CHILD", what.join("\n"));
    command
}

/// Runs a command, with a time limit.
fn run(mut command: Command) -> Output {
    use std::process::Stdio;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The text after `RESULT` in its output. It must have ended well, with nothing on stderr.
fn result(output: &Output, what: &str) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && err.is_empty(), "{what}: {}\n{out}{err}", output.status);
    let line = out.lines().find_map(|line| line.split_once("RESULT ")).map(|(_, result)| result.to_string());
    line.unwrap_or_else(|| panic!("{what}: no result in {out}"))
}

fn ask(what: &[&str]) -> String {
    result(&run(again(&[], what)), &what.join(" "))
}

/// The result under each of some limits.
fn under(limits: impl IntoIterator<Item = u64>, what: &[&str]) -> Vec<String> {
    let with = |limit: u64| ask(&[what, &[&limit.to_string()]].concat());
    limits.into_iter().map(with).collect()
}

const MIB: [u64; 9] = [0, 1, 2, 4, 8, 16, 32, 96, 1024];

/// Errors of these kinds for the smaller limits, and an answer for the largest.
fn errors_then_answers(results: &[String], kinds: &[&str], what: &str) {
    for result in results {
        assert!(result == "ok" || kinds.contains(&result.as_str()), "{what}: {results:?}");
    }
    assert_eq!(results.last().unwrap(), "ok", "{what}: {results:?}");
    assert_ne!(results[0], "ok", "{what}: {results:?}");
}

#[test]
fn without_address_space_there_is_no_memory() {
    let (nano, f32, q8) = (nano(), fixture("llama_gqa"), fixture("gguf_llama_q8_0/model.gguf"));
    for path in [&nano, &f32, &q8] {
        let path = path.to_str().unwrap();
        for resource in ["as", "data"] {
            let results = under(MIB, &["load", path, resource]);
            errors_then_answers(&results, &["OutOfMemory", "Allocation"], &format!("load {resource} {path}"));
        }
    }
    let results = under([0, 1, 2, 4, 100], &["logits", nano.to_str().unwrap(), "as"]);
    errors_then_answers(&results, &["Allocation"], "logits");
}

#[test]
fn without_threads_a_model_is_unavailable_or_does_with_those_there_are() {
    for name in ["gguf_llama_q8_0/model.gguf", "gguf_llama_q4_0/model.gguf", "llama_f16"] {
        let path = fixture(name);
        let results = under([1, 2, 3, 4, 5, 6, 64], &["load", path.to_str().unwrap(), "nproc"]);
        errors_then_answers(&results, &["Unavailable"], name);
    }
    // Its thread comes after the engine's.
    let results = under([2, 3, 4, 5, 64], &["chat", nano().to_str().unwrap(), "nproc"]);
    assert!(results.iter().all(|r| r == "Unavailable"), "{results:?}");
}

#[test]
fn without_descriptors_a_file_cannot_be_read() {
    for path in [nano(), fixture("llama_sharded"), fixture("gguf_llama_f16/model.gguf")] {
        let results = under([0, 3, 4, 5, 6, 64], &["load", path.to_str().unwrap(), "nofile"]);
        errors_then_answers(&results, &["Io"], path.to_str().unwrap());
    }
}

/// Runs `what` in a mount namespace, after a script; none if that is not allowed here.
fn in_namespace(script: &str, what: &[&str]) -> Option<Output> {
    let allowed = Command::new("unshare").args(["-m", "true"]).output();
    if !allowed.is_ok_and(|o| o.status.success()) {
        println!("skipped: a mount namespace needs `unshare` and the right to use it");
        return None;
    }
    let script = format!("set -e; {script}; exec \"$@\"");
    Some(run(again(&["unshare", "-m", "sh", "-c", &script, "sh"], what)))
}

#[test]
fn control_groups_limit_what_is_there_without_the_page_cache() {
    let total = Model::estimate(nano(), &options()).unwrap().total_bytes();
    let (path, limit) = (nano(), 2 * total);
    let load = |folder: &str, files: &[(&str, u64)]| {
        let mut script = "mount -t tmpfs none /sys/fs/cgroup".to_string();
        for (file, value) in files {
            let (folder, file) = format!("/sys/fs/cgroup/{folder}/{file}")
                .rsplit_once('/')
                .map(|(a, b)| (a.to_string(), b.to_string()))
                .unwrap();
            script += &match file.strip_prefix("stat:") {
                Some(key) => format!("; mkdir -p {folder}; echo '{key} {value}' >> {folder}/memory.stat"),
                None => format!("; mkdir -p {folder}; echo {value} > {folder}/{file}"),
            };
        }
        let output = in_namespace(&script, &["plain", path.to_str().unwrap()])?;
        Some(result(&output, &script))
    };
    let used = limit - total / 2;
    let cases: [(&str, &[(&str, u64)], &str); 7] = [
        (".", &[("memory.max", limit), ("memory.current", used)], "OutOfMemory"),
        (".", &[("memory.max", limit), ("memory.current", used), ("stat:inactive_file", used)], "ok"),
        (".", &[("memory.max", limit), ("memory.current", used), ("stat:active_file", used)], "ok"),
        (".", &[("memory.max", limit), ("memory.current", used), ("stat:anon", used)], "OutOfMemory"),
        (".", &[("memory.high", total / 2), ("memory.current", 0)], "OutOfMemory"),
        ("memory", &[("memory.limit_in_bytes", limit), ("memory.usage_in_bytes", used)], "OutOfMemory"),
        (
            "memory",
            &[
                ("memory.limit_in_bytes", limit),
                ("memory.usage_in_bytes", used),
                ("stat:total_inactive_file", used),
            ],
            "ok",
        ),
    ];
    for (folder, files, want) in cases {
        let Some(got) = load(folder, files) else { return };
        assert_eq!(got, want, "{folder} {files:?}");
    }
    // A limit of the parent of the process's own cgroup, which itself has no limit.
    let script = format!(
        "mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/app; cd /sys/fs/cgroup; echo max > app/memory.max; \
         echo 0 > app/memory.current; echo {} > memory.max; echo 0 > memory.current; echo 0::/app > own; \
         mount --bind own /proc/$$/cgroup",
        total / 2
    );
    let output = in_namespace(&script, &["plain", path.to_str().unwrap()]).unwrap();
    assert_eq!(result(&output, &script), "OutOfMemory");
}

#[test]
fn without_proc_and_groups_nothing_is_known_and_all_goes_well() {
    let path = nano();
    for script in ["mount -t tmpfs none /proc", "mount -t tmpfs none /sys; mount -t tmpfs none /proc"] {
        let Some(output) = in_namespace(script, &["plain", path.to_str().unwrap()]) else { return };
        assert_eq!(result(&output, script), "ok");
    }
}

#[test]
fn a_forked_child_is_told_at_once_and_drops_in_silence() {
    assert_eq!(ask(&["fork"]), "ok");
}

#[test]
fn a_truncated_file_is_an_error_of_its_requests() {
    for how in ["plain", "blocked", "loading", "quantizing", "ignored"] {
        assert_eq!(ask(&["truncate", how]), "ok", "{how}");
    }
    // The normal behaviour is unchanged in these cases.
    for how in ["declined", "elsewhere", "sent"] {
        let output = run(again(&[], &["truncate", how]));
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{how}: {output:?}");
    }
    for how in ["handler", "handler with information", "once"] {
        let output = run(again(&[], &["truncate", how]));
        assert_eq!(output.status.code(), Some(42), "{how}: {output:?}");
    }
}

#[test]
fn int8_folders_are_written_where_nothing_is() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::env::set_current_dir(scratch.path()).unwrap();
    let source = fixture("llama_gqa");
    let to = |to: &Path| quantize(&source, to, |_| true);
    let names = |folder: &Path| -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/tokenizer.json"), "{}").unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    let before = names(scratch.path());
    for wrong in [Path::new(""), Path::new("."), &source, &at("other"), &at("other/../other/")] {
        let error = to(wrong).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option: "to", .. }), "{wrong:?}: {error}");
    }
    for wrong in ["file", "dangling", "file/x"] {
        let error = to(&at(wrong)).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == at(wrong)), "{wrong}: {error}");
    }
    assert_eq!((names(scratch.path()), names(&at("other"))), (before.clone(), vec!["tokenizer.json".into()]));
    // Stopped or failed, nothing stays; an empty folder stays.
    assert_eq!(quantize(&source, &at("new"), |_| false), Err(Error::LoadCancelled));
    assert_eq!(names(scratch.path()), before);
    fs::create_dir(at("empty")).unwrap();
    assert_eq!(quantize(&source, &at("empty"), |_| false), Err(Error::LoadCancelled));
    assert!(names(&at("empty")).is_empty());
    for good in ["empty", "new", "relative", "of/new/parents"] {
        to(Path::new(good)).unwrap();
        assert_eq!(names(&at(good)), ["config.json", "model.safetensors"]);
        Model::load(at(good), &options()).unwrap();
    }
}

// The child.

/// How the other tests see a result.
fn kind<T>(result: &Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => {
            let text = format!("{error:?}");
            text.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_string()
        }
    }
}

#[test]
#[ignore = "the other tests run it, in processes of their own"]
fn child() {
    let what = std::env::var("WELM_TEST_CHILD").expect("another test says what to do");
    let what: Vec<&str> = what.split('\n').collect();
    let done = match what[..] {
        ["plain", path] => kind(&load_and_generate(Path::new(path))),
        [task, path, resource, limit] => limited(task, Path::new(path), resource, limit.parse().unwrap()),
        ["fork"] => forks(),
        ["truncate", how] => truncated(how),
        _ => panic!("{what:?}"),
    };
    println!("RESULT {done}");
}

fn load_and_generate(path: &Path) -> Result<()> {
    let model = Model::load(path, &options())?;
    model.generate(&vec![1, 2, 3], &GenerateOptions::greedy(4)).map(drop)
}

fn set_limit(resource: &str, limit: u64) {
    let field = |key: &str| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_string();
        1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let (resource, limit) = match resource {
        "as" => (libc::RLIMIT_AS, field("VmSize:") + (limit << 20)),
        "data" => (libc::RLIMIT_DATA, field("VmData:") + (limit << 20)),
        "nofile" => (libc::RLIMIT_NOFILE, limit),
        "nproc" => (libc::RLIMIT_NPROC, limit),
        other => panic!("{other}"),
    };
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: a local variable; the user is one without other processes, since those of root have no limit.
    unsafe {
        if resource == libc::RLIMIT_NPROC && libc::geteuid() == 0 {
            assert_eq!((libc::setgid(61_234), libc::setuid(61_234)), (0, 0));
        }
        assert_eq!(libc::setrlimit(resource, &limit), 0);
    }
}

fn limited(task: &str, path: &Path, resource: &str, limit: u64) -> String {
    if task == "load" {
        set_limit(resource, limit);
        return kind(&load_and_generate(path));
    }
    let model = Model::load(path, &options()).unwrap();
    let tokens: Vec<u32> = (0..500).map(|i| i % 100).collect();
    let messages = [Message::new("user", "hi")];
    if task == "chat" {
        // The small model has no template.
        let folder = with_template(path);
        let model = Model::load(folder.path(), &options()).unwrap();
        set_limit(resource, limit.min(3));
        let refused = kind(&model.chat_prompt(&messages, true));
        drop(model);
        return refused;
    }
    // So that the engine's thread is there, with what it needs to wait: it may not start where all memory is taken.
    model.generate(&tokens[..3].to_vec(), &GenerateOptions::greedy(4)).unwrap();
    // All memory is taken, and then this many megabytes and a few more are freed.
    set_limit(resource, 128);
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(1 << 20);
    let mut piece = Vec::new();
    while piece.try_reserve_exact(1 << 18).is_ok() {
        taken.push(std::mem::take(&mut piece));
    }
    taken.truncate(taken.len().saturating_sub(12 + 4 * limit as usize));
    let logits = model.logits(&tokens, 0);
    assert!(logits.as_ref().map_or(true, |l| l.len() == 500 * model.config().vocab_size));
    // And it goes on.
    model.generate(&tokens[..3].to_vec(), &GenerateOptions::greedy(4)).unwrap();
    kind(&logits)
}

fn with_template(path: &Path) -> tempfile::TempDir {
    let folder = copied(path);
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    folder
}

/// A copy of a model's folder.
fn copied(path: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// Forks while other threads of the engine are in the middle of something.
fn forks() -> String {
    let model = Model::load(nano(), &options()).unwrap();
    let long =
        GenerateOptions { max_tokens: 200, ignore_eos: true, seed: Some(1), ..GenerateOptions::default() };
    let pin = pins().swap_remove(0);
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let (model, long, stop) = (model.clone(), long.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    model.generate("春", &long).unwrap();
                    model.tokenize("床前明月光，", false).unwrap();
                }
            })
        })
        .collect();
    let mut stream = model.stream("床", &long).unwrap();
    assert!(stream.next().unwrap().is_ok());
    let mut polled = model.stream("床", &long).unwrap();
    let mut poll = || polled.poll_next(&mut Context::from_waker(Waker::noop()));
    while let Poll::Ready(piece) = poll() {
        assert!(piece.is_some(), "the text is too short for this test");
    } // so that a waker is waiting while the process forks
    let mut model = Some(model);
    for round in 0..20 {
        // SAFETY: the child calls what is promised to work there, and ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let parents = model.take().unwrap();
            let options = GenerateOptions { deadline: Some(Duration::from_millis(500)), ..long.clone() };
            let calls = [
                kind(&parents.generate("床", &long)),
                kind(&parents.generate("床", &options)),
                kind(&parents.stream("床", &long)),
                kind(&parents.score("床", &["a"])),
                kind(&parents.logits("床", 0)),
                kind(&stream.next().unwrap()),
                match poll() {
                    Poll::Ready(Some(item)) => kind(&item),
                    _ => "no item".into(),
                },
            ];
            let good = calls.iter().all(|call| call == "Forked")
                && stream.next().is_none()
                && matches!(stream.next_timeout(Duration::ZERO), Poll::Ready(None))
                && parents.tokenize("床前明月光，", false).is_ok()
                && parents.detokenize(&[5]).len() < 100
                && parents.stats().requests > 0
                && format!("{parents:?}").contains("Model");
            stream.cancel();
            let (cancel, clone) = (stream.canceller(), parents.clone());
            cancel();
            drop((stream, cancel, clone, parents));
            let own = || {
                let own = Model::load(nano(), &self::options()).unwrap();
                let greedy = GenerateOptions::greedy(pin.ids.len());
                own.generate(&pin.prompt, &greedy).unwrap().text() == pin.text
            };
            let good = good && (round % 10 != 0 || own());
            // A normal end, with all exit handlers.
            std::process::exit(if good { 7 } else { 8 });
        }
        let mut status = 0;
        let until = Instant::now() + Duration::from_secs(30);
        // SAFETY: a child of this process, and a local variable.
        while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
            if Instant::now() > until {
                // SAFETY: as above.
                unsafe { libc::kill(child, libc::SIGKILL) };
                panic!("the child hangs");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "round {round}: status {status}");
    }
    stop.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    // The parent's own goes on.
    assert!(stream.all(|piece| piece.is_ok()));
    "ok".into()
}

fn shorten(file: &Path, len: u64) {
    fs::File::options().write(true).open(file).and_then(|f| f.set_len(len)).unwrap();
}

/// Reads a map of the test's own after the end of its file.
fn fault_elsewhere() -> ! {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16_384).unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: a new map, of which one byte is read, for the signal that this gives.
    unsafe {
        let fd = file.as_file().as_raw_fd();
        let map = libc::mmap(null_mut(), 16_384, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(map, libc::MAP_FAILED);
        shorten(file.path(), 0);
        std::ptr::read_volatile(map.cast::<u8>().add(9_000));
    }
    panic!("there was no signal");
}

extern "C" fn handler(_: libc::c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) };
}

extern "C" fn handler_with_information(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system's own; ends the process.
    unsafe { libc::_exit(if (*info).si_addr().is_null() { 43 } else { 42 }) };
}

fn before(action: usize, flags: libc::c_int) {
    // SAFETY: a function of the type that the flags say, or a constant.
    unsafe {
        let mut new: libc::sigaction = zeroed();
        new.sa_sigaction = action;
        new.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &new, null_mut()), 0);
    }
}

fn truncated(how: &str) -> String {
    match how {
        "handler" => before(handler as *const () as usize, 0),
        "handler with information" => {
            before(handler_with_information as *const () as usize, libc::SA_SIGINFO)
        }
        "once" => before(handler as *const () as usize, libc::SA_RESETHAND),
        "ignored" => before(libc::SIG_IGN, 0),
        "sent" => before(libc::SIG_DFL, 0),
        // As programs do on threads that must not get their signals.
        // SAFETY: local variables.
        "blocked" => unsafe {
            let mut all = zeroed();
            libc::sigfillset(&mut all);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &all, null_mut()), 0);
        },
        _ => {}
    }
    let source = if matches!(how, "loading" | "quantizing") { fixture("llama_gqa") } else { nano() };
    let folder = copied(&source);
    let file: PathBuf = folder.path().join("model.safetensors");
    let shorten_once = {
        let (file, done) = (file.clone(), AtomicBool::new(false));
        move |_: LoadProgress| {
            if !done.swap(true, Ordering::Relaxed) {
                shorten(&file, 4_096);
            }
            true
        }
    };
    let is_told = |error: Error| match &error {
        Error::InvalidFile { path, reason } => {
            assert!(*path == file && reason.contains("truncated"), "{error}")
        }
        other => panic!("{other}"),
    };
    if how == "loading" {
        let load = LoadOptions { dtype: Dtype::Bf16, progress: Some(Arc::new(shorten_once)), ..options() };
        is_told(Model::load(folder.path(), &load).unwrap_err());
        return "ok".into();
    }
    if how == "quantizing" {
        let to = folder.path().join("int8");
        is_told(quantize(folder.path(), &to, shorten_once).unwrap_err());
        assert!(!to.exists());
        return "ok".into();
    }
    let load = LoadOptions { guard_mapped_files: how != "declined", ..options() };
    let model = Model::load(folder.path(), &load).unwrap();
    match how {
        "elsewhere" | "handler" | "handler with information" | "once" => fault_elsewhere(),
        // SAFETY: of this process.
        "sent" | "ignored" => _ = unsafe { libc::raise(libc::SIGBUS) },
        _ => {}
    }
    let greedy = GenerateOptions::greedy(8);
    model.generate("床", &greedy).unwrap();
    let other = Model::load(nano(), &LoadOptions { progress: None, ..load.clone() }).unwrap();
    shorten(&file, 8_192);
    model.check_health().unwrap();
    let (mut stream, waiting) = (model.stream("床前", &greedy).unwrap(), model.stream("春", &greedy));
    is_told(stream.next().unwrap().unwrap_err());
    assert!(stream.next().is_none());
    is_told(waiting.map_or_else(|refused| refused, |stream| stream.last().unwrap().unwrap_err()));
    is_told(model.check_health().unwrap_err());
    for _ in 0..3 {
        is_told(model.generate("床", &greedy).unwrap_err());
        is_told(model.score("床", &["前"]).unwrap_err());
        is_told(model.logits("床", 0).unwrap_err());
    }
    // Another model of the process, whose file is whole.
    assert!(!other.generate("床", &greedy).unwrap().text().is_empty());
    other.check_health().unwrap();
    "ok".into()
}
