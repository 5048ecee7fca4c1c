//! C++ against the installed library: welm.hpp, and the programs of `examples/cpp`.
//!
//! `tests/capi/install` installs welm first; `WELM_PREFIX` says where if it is elsewhere. Needs g++, cmake, pkg-config
//! and, of Debian, libmicrohttpd-dev, libcpp-httplib-dev and nlohmann-json3-dev.
//!
//! C++ is slow to compile. So each file is compiled once for CMake and once for pkg-config, and linked with both kinds
//! of library only where a test needs that. tests/capi.rs tests all pairs of a build system and a kind, in C.

#[path = "cpp/hostile.rs"]
mod hostile;
#[path = "cpp/service.rs"]
mod service;

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use service::{Service, events, read_all, read_answer};
use tempfile::TempDir;
use welm_tests::installed::Linkage::{self, Shared, Static};
use welm_tests::installed::{
    PREFIX, check_linkage, cmake_in, cmake_linkage, code_blocks, linking, pin_arguments, run,
};
use welm_tests::{data, nano};

/// Warnings that must not occur in our files and in the headers of welm.
const STRICT: [&str; 7] =
    ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow"];

/// Builds targets of a CMake project against the installed package, and gives a folder with these programs.
///
/// All tests build in the same folder, one after another, so that they and later runs share compiled files.
fn build(source: &str, linkage: Linkage, targets: &[&str]) -> TempDir {
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source.replace('/', "-"));
    fs::create_dir_all(&shared).unwrap();
    let lock = File::create(shared.join("lock")).unwrap();
    lock.lock().unwrap();
    // The cache may be of another prefix or linkage.
    let _ = fs::remove_file(shared.join("CMakeCache.txt"));
    let flags = format!("-DCMAKE_CXX_FLAGS={}", STRICT[1..].join(" "));
    // Not optimised: little of the time is spent in this code.
    let options = ["-DCMAKE_BUILD_TYPE=None".into(), flags, cmake_linkage(linkage)];
    cmake_in(&shared, &data(source), &PREFIX, &options, targets).unwrap();
    let own = tempfile::tempdir().unwrap();
    for program in targets {
        fs::copy(shared.join(program), own.path().join(program)).unwrap();
    }
    own
}

const CONSUMERS: [&str; 2] = ["consumer", "no_exceptions"];

/// Runs the consumers of `tests/cpp`; one build runs everything, the others the same less often.
fn consume(folder: &Path, linkage: Linkage, whole: bool) {
    for program in CONSUMERS {
        check_linkage(&folder.join(program), linkage);
        run_consumer(&folder.join(program), whole);
    }
}

fn run_consumer(program: &Path, whole: bool) {
    let mut command = Command::new(program);
    if !whole {
        command.env("WELM_TEST_FEW", "1");
    }
    run(command.arg(nano()).args(pin_arguments().iter().flatten()));
}

#[test]
fn consumers_through_pkg_config() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (source, more) in
        [("consumer", &[][..]), ("other", &[]), ("no_exceptions", &["-fno-exceptions", "-fno-rtti"])]
    {
        let mut command = Command::new("g++");
        command.args(STRICT).args(more).args(linking(Shared)).arg("-c");
        run(command.arg(data("tests/cpp").join(format!("{source}.cpp"))).arg("-o").arg(at(source)));
    }
    for linkage in [Shared, Static] {
        let linked = tempfile::tempdir().unwrap();
        for (program, objects) in CONSUMERS.iter().zip([&["consumer", "other"][..], &["no_exceptions"]]) {
            let mut command = Command::new("g++");
            command.args(objects.iter().map(|object| at(object))).arg("-o").arg(linked.path().join(program));
            run(command.args(linking(linkage)).arg("-lpthread"));
        }
        consume(linked.path(), linkage, linkage == Shared);
    }
}

#[test]
fn consumers_through_cmake() {
    consume(build("tests/cpp", Static, &CONSUMERS).path(), Static, false);
}

#[test]
fn a_consumer_under_the_sanitizers() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("consumer");
    let mut command = Command::new("g++");
    command.args(STRICT).args(["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    command.args(["consumer.cpp", "other.cpp"].map(|name| data("tests/cpp").join(name)));
    run(command.arg("-o").arg(&program).args(linking(Shared)).arg("-lpthread"));
    run_consumer(&program, false);
}

#[test]
fn the_header_is_that_of_any_standard_since_17() {
    let header = data("include/welm.hpp");
    for standard in ["c++17", "c++20", "c++23"] {
        for more in ["-fexceptions", "-fno-exceptions"] {
            let mut command = Command::new("g++");
            command.args(STRICT).args(["-x", "c++", &format!("-std={standard}"), more, "-fsyntax-only"]);
            run(command.arg("-include").arg(&header).arg("/dev/null"));
        }
    }
}

/// The blocks of C++ in examples/cpp/README.md, compiled and run in the repository's root.
#[test]
fn the_readme_s_examples_run() {
    for block in code_blocks("examples/cpp/README.md", "cpp") {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("example.cpp"), folder.path().join("example"));
        fs::write(&source, block).unwrap();
        run(Command::new("g++").args(STRICT).arg(&source).arg("-o").arg(&program).args(linking(Shared)));
        let printed = run(Command::new(&program).current_dir(data("")));
        assert!(!printed.trim().is_empty(), "expected verse");
    }
}

fn signal(process: &Child, signal: i32) {
    // SAFETY: the process is ours, and was not waited for, so that its number is still its own.
    assert_eq!(unsafe { libc::kill(process.id() as libc::pid_t, signal) }, 0);
}

#[test]
fn the_generator() {
    for linkage in [Shared, Static] {
        let build = build("examples/cpp", linkage, &["generate"]);
        let program = build.path().join("generate");
        check_linkage(&program, linkage);
        let generate = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.arg("--model").arg(nano()).args(arguments);
            command
        };
        for [prompt, ids, text] in pin_arguments() {
            let n = ids.split(' ').count().to_string();
            let printed = run(generate(&["--temperature", "0", "--max-tokens", &n]).arg(&prompt));
            assert_eq!(printed, format!("{prompt}{text}\n"));
        }
        let sampled = || run(&mut generate(&["--seed", "1", "床前明月光，"]));
        let whole = sampled();
        assert_eq!(whole, sampled());
        let stopped = run(&mut generate(&["--seed", "1", "--stop", "。", "床前明月光，"]));
        assert_eq!(stopped, format!("{}\n", whole.split('。').next().unwrap()));

        for (arguments, code, reason) in [
            (&["--temperature", "-1", "x"][..], 2, "--temperature: expected a number, got -1"),
            (&["--max-tokens", "9000", "x"], 1, "9001 tokens"),
            (&["--nonsense", "1"], 2, "unknown option --nonsense"),
            (&["--seed"], 2, "--seed: expected a value"),
        ] {
            let output = generate(arguments).output().unwrap();
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(code) && printed.contains(reason),
                "{arguments:?}: {printed}"
            );
        }

        // Ctrl-C after the first bytes. The answer may end before the program sees the signal.
        let cancelled = (0..50).any(|seed| {
            let mut command = generate(&["--max-tokens", "400", "--seed", &seed.to_string(), "甲：你好"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut first = [0; 1];
            child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
            signal(&child, libc::SIGINT);
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            String::from_utf8_lossy(&output.stderr).contains("; cancelled;")
        });
        assert!(cancelled);
    }
}

fn greedy(prompt: &str, n: usize, stream: bool) -> Value {
    json!({"prompt": prompt, "max_tokens": n, "temperature": 0, "stream": stream})
}

fn answers_are_right(service: &Service) {
    for [prompt, ids, text] in pin_arguments() {
        let n = ids.split(' ').count();
        let (status, whole) = read_answer(service.ask(greedy(&prompt, n, false)));
        let whole: Value = serde_json::from_str(&whole).unwrap();
        assert_eq!((status, whole["choices"][0]["text"].as_str()), (200, Some(text.as_str())));
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!(whole["usage"]["completion_tokens"], n);

        let (status, body) = read_answer(service.ask(greedy(&prompt, n, true)));
        let events = events(&body);
        let pieces = events.iter().filter_map(|e| e["choices"][0]["text"].as_str());
        assert_eq!((status, pieces.collect::<String>()), (200, text));
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], n);
    }
    let request =
        json!({"prompt": "春眠不觉晓，", "n": 3, "seed": 5, "logprobs": 2, "stop": ["。"], "top_k": null});
    let asked = || serde_json::from_str::<Value>(&read_answer(service.ask(request.clone())).1).unwrap();
    let (first, again) = (asked(), asked());
    assert_eq!(first["choices"], again["choices"]);
    assert_eq!((first["seed"].as_u64(), first["choices"].as_array().unwrap().len()), (Some(5), 3));
    let token = &first["choices"][2]["logprobs"][0];
    assert!(token["logprob"].as_f64().unwrap() <= 0.0 && token["top"].as_array().unwrap().len() == 2);
    assert!(!first["choices"][1]["text"].as_str().unwrap().contains('。'));
}

fn errors_have_their_status(service: &Service) {
    for (body, status, kind, reason) in [
        (r#"{"prompt": "x", "temperature": -1}"#, 400, "WELM_INVALID_OPTION", "temperature"),
        (r#"{"prompt": "x", "max_tokens": 9000}"#, 400, "WELM_TOO_LONG", "9001 tokens"),
        (
            r#"{"prompt": "x", "max_tokens": -1}"#,
            400,
            "invalid_request",
            "max_tokens: expected a whole number",
        ),
        (
            r#"{"prompt": "x", "logprobs": 4294967295}"#,
            400,
            "invalid_request",
            "logprobs: expected a whole number",
        ),
        (r#"{"prompt": "x", "stop": [1]}"#, 400, "invalid_request", "stop: expected a text, got 1"),
        (r#"{"prompt": "x", "presence_penalty": 101}"#, 400, "WELM_INVALID_OPTION", "`presence_penalty`"),
        (r#"{"prompt": "x", "min_p": "y"}"#, 400, "invalid_request", "min_p: expected a number"),
        (r#"{"prompt": "x", "suffix": "y"}"#, 400, "invalid_request", "unknown field suffix"),
        (r#"{"prompt": "x", "seed": 1, "seed": 2}"#, 400, "invalid_request", "seed: expected one value"),
        (r#"{"prompt": "x", "top_p": 1e999}"#, 400, "invalid_request", "number overflow"),
        (r#"{"prompt": "x", "top_p": -1e300}"#, 400, "invalid_request", "top_p: expected a number from"),
        (r#"{"prompt": "x", "stop": {}}"#, 400, "invalid_request", "stop: expected a text, got an object"),
        (r#"{"prompt": "x", "n": [1]}"#, 400, "invalid_request", "n: expected a whole number"),
        (r#"{"prompt": null}"#, 400, "invalid_request", "prompt: expected a text, got none"),
        (
            r#"{"prompt": "x", "n": 128, "max_tokens": 300, "logprobs": 9}"#,
            400,
            "answer_too_long",
            "expected an answer of at most 2097152 bytes",
        ),
        (
            r#"{"prompt": "xxxxxxxx", "n": 128, "logprobs": 100, "max_tokens": 1, "echo": true, "stream": true}"#,
            400,
            "answer_too_long",
            "got 1152 tokens of 6472",
        ),
        (r#"{"max_tokens": 3}"#, 400, "invalid_request", "prompt: expected a text"),
        (r#"["x"]"#, 400, "invalid_request", "expected a JSON object"),
        ("{", 400, "invalid_request", "parse error"),
    ] {
        let (got, answer) = service.json("POST", "/v1/completions", body);
        let error = &answer["error"];
        assert_eq!((got, error["type"].as_str()), (status, Some(kind)), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(reason), "{body}: {answer}");
    }
    assert_eq!(service.json("GET", "/nowhere", "").0, 404);
    assert_eq!(service.json("GET", "/health", ""), (200, json!({"status": "ok"})));

    // More sequences at once than the engine lets wait.
    let much = json!({"prompt": "甲：你好", "n": 128, "max_tokens": 400, "seed": 1, "stream": true});
    let asked: Vec<_> = (0..24).map(|_| service.ask(much.clone())).collect();
    service.wait("a refusal", |stats| stats["rejected"].as_u64() > Some(0));
    let mut refused = 0;
    for mut stream in asked {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        match std::str::from_utf8(&head[9..]).unwrap() {
            "200" => {} // and hangs up
            "429" => {
                let mut rest = String::new();
                stream.read_to_string(&mut rest).unwrap();
                assert!(rest.contains("WELM_QUEUE_FULL"), "{rest}");
                refused += 1;
            }
            other => panic!("expected 200 or 429, got {other}"),
        }
    }
    assert!(refused > 0);
    service.at_rest();
}

fn hanging_up_cancels(service: &Service) {
    let tokens = |stats: &Value| stats["completion_tokens"].as_u64().unwrap();
    for stream in [false, true] {
        let request = json!({"prompt": "甲：你好", "n": 48, "max_tokens": 400, "seed": 3, "stream": stream});
        let start = tokens(&service.at_rest());
        assert_eq!(read_answer(service.ask(request.clone())).0, 200);
        let whole = tokens(&service.at_rest());
        let mut hung_up = service.ask(request);
        if stream {
            hung_up.read_exact(&mut [0; 400]).unwrap();
        } else {
            service.wait("a start", |stats| stats["running"].as_u64() > Some(0));
        }
        drop(hung_up);
        let end = tokens(&service.at_rest());
        assert!(end - whole < whole - start, "stream {stream}: {} of {} tokens", end - whole, whole - start);
    }
}

/// Running requests are completed; then the process ends.
fn sigterm_lets_requests_end(mut service: Service) {
    let mut stream =
        service.ask(json!({"prompt": "甲：你好", "n": 32, "max_tokens": 400, "seed": 4, "stream": true}));
    let mut start = vec![0; 2000];
    stream.read_exact(&mut start).unwrap();
    signal(&service.process, libc::SIGTERM);
    let rest = read_all(stream);
    assert!(rest.contains("data: [DONE]\n\n") && rest.ends_with("\r\n0\r\n\r\n"), "{rest}");
    assert!(service.process.wait().unwrap().success());
    assert!(TcpStream::connect(("127.0.0.1", service.port)).is_err());
}

/// With the static library; the tests below use the shared one.
#[test]
fn the_service() {
    let build = build("examples/cpp", Static, &["serve"]);
    check_linkage(&build.path().join("serve"), Static);
    let service = Service::start(build.path(), &nano(), &[]);
    answers_are_right(&service);
    errors_have_their_status(&service);
    hanging_up_cancels(&service);
    sigterm_lets_requests_end(service);
}

/// Loads the service for some seconds; `WELM_LOAD_SECONDS=60` for the long version.
fn load(model: &Path) {
    let seconds = std::env::var("WELM_LOAD_SECONDS").unwrap_or("6".into());
    let (examples, tests) =
        (build("examples/cpp", Shared, &["serve"]), build("tests/cpp", Shared, &["load"]));
    let mut service = Service::start(examples.path(), model, &[]);
    let mut load = Command::new(tests.path().join("load"));
    load.arg("--model").arg(model).args(["--port", &service.port.to_string()]);
    load.args(["--pid", &service.process.id().to_string(), "--seconds", &seconds]);
    println!("{}", run(&mut load));
    signal(&service.process, libc::SIGTERM);
    assert!(service.process.wait().unwrap().success());
}

/// A model whose weights stay in the CPU's caches.
#[test]
fn the_service_under_load() {
    load(&nano());
}

/// A model that is read from memory in each step, as models in real use are.
#[test]
fn the_service_under_load_with_a_real_model() {
    let path = std::env::var_os("WELM_SMOLLM2").expect("WELM_SMOLLM2 names the GGUF file; tests/run sets it");
    load(Path::new(&path));
}
