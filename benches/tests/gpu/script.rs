//! Tests of `gpu/run` with fake programs and tools, which fail, hang and die when a test tells them to.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{canned, gpu, said};

/// The tests in the list of the fake program of the kernels' tests.
const TESTS: [&str; 8] = [
    "s01_norm",
    "s02_rope",
    "s03_sample",
    "s10_few",
    "s20_tiles_no_hopper",
    "s30_decode",
    "s50_sm90_int8",
    "s70_norm_ptx",
];

/// A folder as from `make`, with programs that only print their arguments.
struct Rehearsal(TempDir);

impl Rehearsal {
    fn new() -> Rehearsal {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("data")).unwrap();
        for file in ["run", "peer.py"] {
            fs::copy(gpu(file), at(file)).unwrap();
        }
        fs::write(at("built-from"), "a test\n").unwrap();
        fs::write(at("canned.jsonl"), canned().0).unwrap();
        // The second word is the test. HANG, DIE, FAIL and BREAK are lists of tests.
        let list = TESTS.map(|test| format!("echo gpu::{test}: test; ")).concat();
        let kernels = r#"case "$*" in *--list*) LIST exit ;; esac
            has() { case " $1 " in *" $2 "*) return 0 ;; esac; return 1; }
            test=${2#gpu::}
            echo "$test: no_hopper=${WELM_NO_HOPPER:-} ptx=${CUDA_FORCE_PTX_JIT:-}" \
                "blocking=${CUDA_LAUNCH_BLOCKING:-} core=${CUDA_COREDUMP_FILE:-}."
            has "${FAIL:-}" $test && echo "assertion failed" && exit 101
            has "${DIE:-}" $test && echo dump >"${CUDA_COREDUMP_FILE:-/dev/null}" && kill -SEGV $$
            has "${BREAK:-}" $test && touch "$OUT/broken" && exit 101
            if has "${HANG:-}" $test; then
                trap '' TERM
                echo "$test hangs"
                echo $$ >"$OUT/pid"
                while :; do sleep 1; done
            fi
            has "${NEEDS:-}" $test && echo "needs a device of capability 9.0"
            echo "test result: ok. 1 passed; 0 failed"
            has "${LOUD:-}" $test && seq 100000
            exit 0"#;
        program(&at("bin/kernels"), &kernels.replace("LIST", &list));
        program(
            &at("bin/cuda"),
            r#"case "$*" in
                *--list*)
                    [ -n "${EMPTY:-}" ] || printf '%s: test\n' company faults logits
                    exit ;;
                *none*) echo "test result: ok. 0 passed"; exit ;;
                *faults*) echo "test faults ... needs the emulator" ;;
            esac
            [ -n "$WELM_TEST_GPU$WELM_TEST_DATA" ] || exit 1
            [ "${UNRECORDED:-}" != "$2" ] || echo "WARN steps are not recorded any more, which is slower"
            echo "test $2 ... no_hopper=${WELM_NO_HOPPER:-}."; echo "test result: ok. 1 passed; 0 failed""#,
        );
        program(
            &at("bin/welm-bench-gpu"),
            r#"case "$*" in
                *--info*)
                    [ -z "${NO_GPU:-}" ] && [ ! -e "$OUT/broken" ] && exit
                    echo "error: no CUDA device" >&2
                    exit 1 ;;
            esac
            echo "benchmark $*: blocking=${CUDA_LAUNCH_BLOCKING:-}."
            echo "copy: 2500 GB/s"
            while [ $# -gt 0 ]; do case $1 in --json) cp "$BENCH" "$2"; shift ;; esac; shift; done"#,
        );
        // A sanitizer that finds an error in one test, prints nothing for another, and has a tool that does not work.
        program(
            &at("tools/compute-sanitizer"),
            r#"while [ $# -gt 0 ]; do case $1 in --tool) tool=$2; shift ;; */bin/*) break ;; esac; shift; done
            [ "$tool" != "${BROKEN_TOOL:-}" ] || { echo "========= Device not supported"; exit 1; }
            "$@"
            code=$?
            [ "$tool:$3" = "${FINDS:-}" ] && echo "========= ERROR SUMMARY: 1 error" && exit 86
            [ "$tool:$3" = "${SILENT:-}" ] || echo "========= ERROR SUMMARY: 0 errors"
            exit $code"#,
        );
        program(
            &at("tools/ncu"),
            r#"[ -z "${NO_COUNTERS:-}" ] || { echo "==ERROR== ERR_NVGPUCTRPERM"; exit 1; }
            while [ $# -gt 0 ]; do case $1 in -o) echo report >"$2.ncu-rep"; shift ;; esac; shift; done"#,
        );
        Rehearsal(folder)
    }

    fn command(&self, steps: &[&str], variables: &[(&str, &str)]) -> Command {
        let at = |name: &str| self.0.path().join(name);
        let _ = fs::remove_dir_all(at("out"));
        let mut bash = Command::new("bash");
        bash.arg(at("run")).args(steps).current_dir(self.0.path());
        let path = std::env::var("PATH").unwrap();
        bash.env("PATH", format!("{}:{path}", at("tools").display()));
        bash.env("OUT", at("out")).env("BENCH", at("canned.jsonl"));
        bash.envs(variables.iter().copied());
        bash
    }

    fn run(&self, steps: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
        let output = self.command(steps, variables).output().unwrap();
        (output.status.code().unwrap(), said(&output))
    }

    fn out(&self, file: &str) -> PathBuf {
        self.0.path().join("out").join(file)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.out(file)).unwrap_or_default()
    }

    /// For each step, the first word of its line in `results`.
    fn results(&self) -> HashMap<String, String> {
        let line = |line: &str| {
            let (what, step) = line.split_once(' ').filter(|(what, _)| !what.is_empty())?;
            Some((step.trim().split([',', ':']).next()?.to_owned(), what.to_owned()))
        };
        self.read("results").replace("gpu::", "").lines().filter_map(line).collect()
    }

    fn wait_for(&self, file: &str, text: &str) {
        let start = Instant::now();
        while !self.read(file).contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "{text:?} is not in {file}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The words of lines that begin with `start`, in their order.
fn order<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(start)).collect()
}

#[test]
fn all_steps_in_their_order() {
    let rehearsal = Rehearsal::new();
    let (code, text) = rehearsal.run(&[], &[("NEEDS", "s50_sm90_int8"), ("LOUD", "s10_few")]);
    assert_eq!(code, 0, "{text}");
    let wanted = TESTS.map(|test| format!("kernels gpu::{test}")).to_vec();
    let wanted: Vec<_> = wanted.iter().map(String::as_str).filter(|step| !step.contains("sm90")).collect();
    let tests = ["cuda logits", "cuda logits+no_hopper", "cuda company"];
    let then =
        [&["quick benchmark"], &tests[..], &["benchmark", "table", "profile of product w8a16"]].concat();
    let got: Vec<_> =
        order(&text, "ok      ").into_iter().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(got[..14], [wanted, then].concat(), "{text}");
    for step in ["profile of attention_prefill", "memcheck gpu::s01_norm", "initcheck gpu::s03_sample"] {
        assert!(got.contains(&step), "{step}:\n{text}");
    }
    // The likeliest to have races first, and no PTX.
    let raced: Vec<_> = got.iter().filter_map(|step| step.strip_prefix("racecheck gpu::")).collect();
    assert_eq!(raced, [TESTS[5], TESTS[4], TESTS[0], TESTS[1], TESTS[2], TESTS[3]], "{text}");
    for absent in ["kernels gpu::s50_sm90_int8 needs a device", "cuda faults needs the emulator", "PyTorch"] {
        assert!(text.contains(&format!("absent  {absent}")), "{absent}:\n{text}");
    }
    let files = ["results", "quick.jsonl", "bench.jsonl", "record.json", "table.md"];
    for file in files.iter().copied().chain(["profiles.tgz", "log"]) {
        assert!(rehearsal.out(file).is_file(), "{file}");
    }
    assert!(fs::read_dir(rehearsal.out("")).unwrap().count() <= 8);

    // The environment of each program. No variable makes host and device wait for each other, or slows measurements down.
    let log = rehearsal.read("log");
    for (test, hopper_and_ptx) in [
        ("s10_few", "no_hopper= ptx="),
        ("s20_tiles_no_hopper", "no_hopper=1 ptx="),
        ("s70_norm_ptx", "no_hopper=1 ptx=1"),
    ] {
        let line = format!("{test}: {hopper_and_ptx} blocking= core=/");
        assert!(log.contains(&line) && log.contains(&format!("/core.gpu__{test}.")), "{line}\n{log}");
    }
    assert_eq!(order(&log, "test logits ... "), ["no_hopper=.", "no_hopper=1."]);
    let measured = order(&log, "benchmark ");
    assert!(measured.iter().any(|line| line.contains("--quick")), "{log}");
    assert!(measured.iter().all(|line| line.ends_with("blocking=.")), "{measured:?}");
}

#[test]
fn what_failed_is_told() {
    let rehearsal = Rehearsal::new();
    let check = |steps: &[&str], variable: (&str, &str), wanted: &[&str]| {
        let (code, text) = rehearsal.run(steps, &[variable, ("WELM_NO_TORCH", "1")]);
        assert_eq!(code, 1, "{text}");
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted}:\n{text}");
        }
    };
    let failed = [
        "assertion failed\n",
        "FAILED  kernels gpu::s02_rope: exit status 101",
        "ok      kernels gpu::s03_sample",
        "s02_rope: no_hopper= ptx= blocking=1",
        "again   kernels gpu::s02_rope with each launch waited for: exit status 101",
        "again   kernels gpu::s02_rope under memcheck: exit status 101, SUMMARY: 0 errors",
        "1 failed:\n kernels gpu::s02_rope",
    ];
    check(&["parity"], ("FAIL", "s02_rope"), &failed);
    check(&["parity"], ("EMPTY", "1"), &["FAILED  cuda none"]);
    check(&["parity"], ("UNRECORDED", "logits"), &["FAILED  cuda logits: steps are not recorded any more"]);
    check(&["sanitizer"], ("FINDS", "racecheck:gpu::s10_few"), &["FAILED  racecheck gpu::s10_few"]);
    check(
        &["sanitizer"],
        ("SILENT", "synccheck:gpu::s10_few"),
        &["FAILED  synccheck gpu::s10_few: it did not say"],
    );
    let (code, text) = rehearsal.run(&["sanitizer"], &[("BROKEN_TOOL", "racecheck")]);
    let absent = "absent  racecheck does not work here: ========= Device not supported";
    assert!(
        code == 0 && text.contains(absent) && text.contains("ok      synccheck gpu::s30_decode"),
        "{text}"
    );
    check(&[], ("NO_GPU", "1"), &["no CUDA device", "the device does not open: exit status 1"]);

    let (code, text) = rehearsal.run(&["profile"], &[("NO_COUNTERS", "1")]);
    assert!(code == 0 && text.contains("absent  profile of attention_decode: ==ERROR== ERR_NVGPU"), "{text}");
    let usage = [
        rehearsal.run(&["perhaps"], &[]),
        rehearsal.run(&["parity"], &[("WELM_TOTAL_SECONDS", "soon")]),
        rehearsal.run(&["--model"], &[]),
    ];
    for (code, text) in usage {
        assert!(code == 2 && text.contains("usage"), "{text}");
    }
}

/// One test hangs and ignores a signal, another dies: all others still have their results, in time.
#[test]
fn a_hang_and_a_death_cost_no_other_result() {
    let rehearsal = Rehearsal::new();
    let start = Instant::now();
    let variables =
        [("HANG", TESTS[2]), ("DIE", TESTS[6]), ("WELM_STEP_SECONDS", "1"), ("WELM_TOTAL_SECONDS", "60")];
    let (code, text) = rehearsal.run(&["parity"], &variables);
    assert!(code == 1 && start.elapsed() < Duration::from_secs(60), "{text}");
    let results = rehearsal.results();
    for (i, test) in TESTS.iter().enumerate() {
        let wanted = if i == 2 || i == 6 { "FAILED" } else { "ok" };
        assert_eq!(results[&format!("kernels {test}")], wanted, "{test}:\n{text}");
    }
    for step in ["quick benchmark", "cuda logits", "cuda company"] {
        assert_eq!(results[step], "ok", "{step}:\n{text}");
    }
    for (test, reason) in [(TESTS[2], "not done in 1 s"), (TESTS[6], "died of SEGV")] {
        for what in
            [format!("FAILED  kernels gpu::{test}"), format!("again   kernels gpu::{test} under memcheck")]
        {
            assert!(text.contains(&format!("{what}: {reason}")), "{what}:\n{text}");
        }
    }
    assert!(text.contains("dump    of gpu::s50_sm90_int8: "), "{text}");
    assert!(rehearsal.read("log").contains("s03_sample hangs"), "{text}");
}

/// A process whose call of the driver never returns. timeout(1) would wait for it.
#[test]
fn a_process_that_does_not_die_is_left_behind() {
    let rehearsal = Rehearsal::new();
    program(
        &rehearsal.0.path().join("tools/timeout"),
        r#"case "$*" in *--exact*s03_sample*) trap '' TERM; sleep 12 ;; esac
        PATH=${PATH#*:} exec timeout "$@""#,
    );
    let variables = [("WELM_STEP_SECONDS", "1"), ("WELM_TOTAL_SECONDS", "30")];
    let (code, text) = rehearsal.run(&["parity"], &variables);
    assert_eq!(code, 1, "{text}");
    let line = "FAILED  kernels gpu::s03_sample: not done in 1 s, and the driver does not let it die";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("ok      kernels gpu::s10_few"), "{text}");
}

/// Steps that no longer fit the time are named, and the script does not succeed.
#[test]
fn a_budget_is_kept() {
    let rehearsal = Rehearsal::new();
    // Room for a kernel's 25 s, but not for 40 s.
    let (code, text) = rehearsal.run(&["parity"], &[("WELM_TOTAL_SECONDS", "40")]);
    assert_eq!(code, 3, "{text}");
    let results = rehearsal.results();
    for (step, wanted) in [
        ("kernels s50_sm90_int8", "ok"),
        ("kernels s70_norm_ptx", "skipped"),
        ("quick benchmark", "skipped"),
        ("cuda logits", "skipped"),
    ] {
        assert_eq!(results[step], wanted, "{step}:\n{text}");
    }
    let last = "skipped:\n kernels gpu::s70_norm_ptx\n quick benchmark\n cuda faults\n cuda logits\n";
    assert!(text.contains(last), "{text}");

    // Nothing after a hang.
    let variables = [("HANG", TESTS[2]), ("WELM_STEP_SECONDS", "2"), ("WELM_TOTAL_SECONDS", "10")];
    let start = Instant::now();
    let (code, text) = rehearsal.run(&["parity", "profile"], &variables);
    assert!(code == 1 && start.elapsed() < Duration::from_secs(12), "{text}");
    for skipped in
        ["kernels gpu::s30_decode", "kernels gpu::s03_sample under memcheck", "profile of attention_decode"]
    {
        assert!(text.contains(&format!("skipped {skipped}: ")), "{skipped}:\n{text}");
    }
}

/// After the device is lost, no other step runs.
#[test]
fn nothing_is_asked_of_a_lost_device() {
    let rehearsal = Rehearsal::new();
    let (code, text) = rehearsal.run(&["parity", "bench"], &[("BREAK", TESTS[3])]);
    assert_eq!(code, 1, "{text}");
    for line in [
        "FAILED  kernels gpu::s10_few: exit status 101",
        "FAILED  the device cannot be opened any more: error: no CUDA device",
        "skipped kernels gpu::s20_tiles_no_hopper: the device does not answer",
        "skipped benchmark: the device does not answer",
        "skipped kernels gpu::s10_few under memcheck: the device does not answer",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// If the script is killed, its results are on disk. If it is asked to end, the running test ends, too.
#[test]
fn results_outlive_the_script() {
    let rehearsal = Rehearsal::new();
    for signal in ["KILL", "TERM"] {
        let variables = [("HANG", TESTS[2]), ("WELM_STEP_SECONDS", "6")];
        let mut command = rehearsal.command(&["parity"], &variables);
        let mut script = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        rehearsal.wait_for("pid", "\n");
        // By now the script waits for it.
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-s", signal, &script.id().to_string()]).status().unwrap().success());
        let status = script.wait().unwrap();
        assert_eq!(status.code(), if signal == "KILL" { None } else { Some(143) }, "{status}");
        assert!(start.elapsed() < Duration::from_secs(2), "it waited");
        let results = rehearsal.results();
        for test in &TESTS[..2] {
            assert_eq!(results[&format!("kernels {test}")], "ok", "{signal}: {results:?}");
        }
        assert!(rehearsal.read("log").contains("s03_sample hangs"), "{signal}");
        // timeout(1) outlives it, and ends the test. Nobody may wait for what is left of the process.
        let stat = format!("/proc/{}/stat", rehearsal.read("pid").trim());
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            let limit = Duration::from_secs(if signal == "KILL" { 20 } else { 5 });
            assert!(start.elapsed() < limit, "{signal}: the test still runs");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
