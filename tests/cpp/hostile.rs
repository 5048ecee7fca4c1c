//! The service of examples/cpp with hostile clients. Each of them gets the right answer, or its connection is closed.
//! Other clients are answered meanwhile, and memory stays within the limit in examples/cpp/README.md.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use welm_tests::installed::Linkage::Shared;
use welm_tests::installed::pin_arguments;
use welm_tests::nano;

use super::service::{Service, read_all, read_answer};
use super::{build, greedy, signal};

const BODY: usize = 256 << 10;
const CONNECTIONS: usize = 24;
const OPTIONS: [&str; 6] = ["--max-body", "262144", "--connections", "24", "--client-timeout", "1"];

/// The most memory in KiB that clients can take, from the README.
fn stated_kib() -> usize {
    let cores = std::thread::available_parallelism().unwrap().get();
    ((CONNECTIONS + 16) * (2 * BODY + (4 << 20)) + cores * 200 * BODY) >> 10
}

const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{HEAD}{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let head = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
    let chunks =
        body.chunks(64 << 10).map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat());
    [head.into_bytes(), chunks.collect::<Vec<_>>().concat(), b"0\r\n\r\n".to_vec()].concat()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
}

fn prompt(text: &str) -> Vec<u8> {
    json!({"prompt": text, "max_tokens": 1}).to_string().into_bytes()
}

/// An ordinary request, and how long it took.
fn ordinary(service: &Service, [prompt, ids, text]: &[String; 3]) -> Duration {
    let start = Instant::now();
    let (status, body) = read_answer(service.ask(greedy(prompt, ids.split(' ').count(), false)));
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body["choices"][0]["text"].as_str()), (200, Some(text.as_str())), "{body}");
    start.elapsed()
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn its_arguments(folder: &Path) {
    let run = |arguments: &[&str]| {
        let output = Command::new(folder.join("serve")).args(arguments).output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.code().unwrap(), out, err)
    };
    let whole = |name: &str, least: u64, most: u64, got: &str| {
        format!("serve: {name}: expected a whole number from {least} to {most}, got {got}\n")
    };
    for (name, least, most) in [
        ("--port", 0, 65_535),
        ("--connections", 1, 10_000),
        ("--max-body", 1_024, 1 << 30),
        ("--timeout", 1, 86_400),
        ("--client-timeout", 1, 3_600),
    ] {
        let outside = [(most + 1).to_string(), "99999999999999999999".into(), (least as i64 - 1).to_string()];
        let others = ["-1", "x", "", "1.5", "1e3", "0x10", " 8", "8 "].map(String::from);
        for got in outside.into_iter().chain(others) {
            let (code, out, err) = run(&["--model", "nowhere", name, &got]);
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            assert!(err.starts_with(&whole(name, least, most, &got)), "{err}");
        }
        let (code, _, err) = run(&["--model", "nowhere", name]);
        assert!(code == 2 && err.contains(&format!("{name}: expected a value after it, got none")), "{err}");
    }
    for (arguments, code, reason) in [
        (&[][..], 2, "--model: expected a folder or a GGUF file, got none"),
        (&["--model", "x", "--model", "y"], 2, "--model: expected one value, got several"),
        (&["--nonsense", "1"], 2, "unknown option --nonsense"),
        (
            &["--model", "x", "--host", "no such host"],
            2,
            "--host: expected an address of this machine, got no such",
        ),
        (&["--model", "nowhere", "--port", "0"], 1, "nowhere"),
    ] {
        let (got, _, err) = run(arguments);
        assert!(got == code && err.contains(reason), "{arguments:?}: {err}");
    }
    let (code, out, err) = run(&["--port", "1", "--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for option in
        ["--model PATH", "--host", "--port", "--connections", "--max-body", "--timeout", "--client-timeout"]
    {
        assert!(out.contains(&format!("\n  {option}")), "{option} in {out}");
    }

    // More connections than the process may have open files.
    let serve = folder.join("serve");
    let script = format!("ulimit -n 200; exec {} --model nowhere --connections 500", serve.display());
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.contains("--connections: expected at most 120, since this process may have 200 files"),
        "{err}"
    );
    assert_eq!(output.status.code(), Some(2));

    // A port that another process uses.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let (code, _, err) = run(&["--model", nano().to_str().unwrap(), "--port", &port.to_string()]);
    assert!(code == 1 && err.contains(&format!("port {port}: Address already in use")), "{err}");
}

/// Each of these requests has one right answer, which comes at once.
fn hostile_requests_have_their_answer(folder: &Path) {
    let service = Service::start(folder, &nano(), &OPTIONS);
    let (pin, before) = (&pin_arguments()[0], service.peak_kib());
    let ask = br#"{"prompt":"x","max_tokens":1}"#;
    let nested = |open: &str, n: usize| [br#"{"prompt":"#, open.repeat(n).as_bytes()].concat();
    let long = "a".repeat(BODY - 20);
    let quoted = |reason: &str| format!("\"message\":\"{reason}");
    let framing = quoted("expected one Content-Length, or Transfer-Encoding: chunked");
    let too_big = quoted("expected a body of at most 262144 bytes, got ");
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        // JSON
        ("nested lists", post("", &nested("[", 100_000)), 400, "prompt: expected a text, got a list"),
        (
            "nested objects",
            post("", &nested(r#"{"a":"#, 50_000)),
            400,
            "prompt: expected a text, got an object",
        ),
        (
            "nested in an unknown field",
            post("", &nested(r#"1,"x":[["#, 1)),
            400,
            "prompt: expected a text, got 1",
        ),
        ("only lists", post("", "[".repeat(200_000).as_bytes()), 400, "expected a JSON object"),
        (
            "nested stop",
            post("", &[br#"{"stop":"#, "[".repeat(9_000).as_bytes()].concat()),
            400,
            "stop: expected",
        ),
        ("a long name", post("", format!(r#"{{"{long}": 1}}"#).as_bytes()), 400, "unknown field aaa"),
        (
            "a long number",
            post("", format!(r#"{{"n": {}}}"#, "9".repeat(BODY - 20)).as_bytes()),
            400,
            "overflow",
        ),
        (
            "a long text for a number",
            post("", format!(r#"{{"n": "{long}"}}"#).as_bytes()),
            400,
            "n: expected",
        ),
        (
            "a long text without end",
            post("", format!(r#"{{"n": "{long}"#).as_bytes()),
            400,
            "missing closing quote",
        ),
        ("no UTF-8", post("", b"{\"prompt\": \"\xff\xfe\"}"), 400, "ill-formed UTF-8"),
        ("no UTF-8 in a name", post("", b"{\"\xff\": 1}"), 400, "ill-formed UTF-8"),
        ("nothing", post("", b""), 400, "parse error"),
        (
            "stops",
            post("", format!(r#"{{"prompt":"x","stop":[{}""]}}"#, r#""","#.repeat(80_000)).as_bytes()),
            400,
            "256",
        ),
        ("a prompt of the most bytes", post("", &prompt(&long[..BODY - 40])), 400, "WELM_TOO_LONG"),
        // Bodies
        (
            "a form, as of curl -d",
            post("Content-Type: application/x-www-form-urlencoded\r\n", &prompt(&long[..9_000])),
            400,
            "WELM_TOO_LONG",
        ),
        ("a multipart form", post("Content-Type: multipart/form-data; boundary=x\r\n", ask), 200, "choices"),
        ("too long", post("", &vec![b' '; 15 << 20]), 413, &too_big),
        ("too long in chunks", chunked(&vec![b' '; 15 << 20]), 413, &too_big),
        ("chunks", chunked(ask), 200, "choices"),
        (
            "packed",
            post("Content-Encoding: gzip\r\n", &[31, 139, 8, 0]),
            415,
            "expected a body without Content-Encoding",
        ),
        ("packed oddly", post("Content-Encoding: x, br\r\n", ask), 415, "Content-Encoding"),
        ("as it is", post("Content-Encoding: identity\r\n", ask), 200, "choices"),
        ("waits for 100", post("Expect: 100-continue\r\n", ask), 100, "choices"),
        (
            "waits for 100, too long",
            format!("{HEAD}Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n").into(),
            413,
            &too_big,
        ),
        // Where the body ends
        ("two lengths", post("Content-Length: 29\r\n", ask), 400, &framing),
        ("two other lengths", post("Content-Length: 3\r\n", ask), 400, &framing),
        ("a negative length", format!("{HEAD}Content-Length: -1\r\n\r\n").into(), 400, ""),
        ("a signed length", format!("{HEAD}Content-Length: +5\r\n\r\nabcde").into(), 400, ""),
        ("a length of 2^64-1", format!("{HEAD}Content-Length: 18446744073709551615\r\n\r\n").into(), 413, ""),
        ("a length of 2^64", format!("{HEAD}Content-Length: 18446744073709551616\r\n\r\n").into(), 413, ""),
        ("a length that is none", format!("{HEAD}Content-Length: x\r\n\r\n").into(), 400, ""),
        ("a length and chunks", post("Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400, &framing),
        (
            "chunked twice",
            format!("{HEAD}{0}{0}\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n").into(),
            400,
            &framing,
        ),
        (
            "another coding",
            format!("{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n").into(),
            400,
            &framing,
        ),
        ("a space before the colon", post("Content-Length : 3\r\n", ask), 400, &framing),
        (
            "a chunk of no size",
            format!("{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n").into(),
            400,
            "",
        ),
        (
            "a body that is shorter",
            format!("{HEAD}Content-Length: 900\r\n\r\n{{").into(),
            408,
            "expected a whole request within 1 s",
        ),
        // Heads
        ("many headers", [HEAD.as_bytes(), "A: b\r\n".repeat(200_000).as_bytes()].concat(), 431, ""),
        ("a long header", [HEAD.as_bytes(), b"A: ", &vec![b'a'; 1 << 20]].concat(), 431, ""),
        ("a long path", get(&format!("/{}", "a".repeat(1 << 20))), 414, ""),
        (
            "PUT",
            b"PUT /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".into(),
            405,
            "expected GET, HEAD, got PUT",
        ),
        (
            "OPTIONS",
            b"OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
            405,
            "Allow: POST\r\n",
        ),
        (
            "a part of a method",
            b"ET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
            405,
            "got ET",
        ),
        (
            "HEAD",
            b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
            200,
            "Content-Length: 15",
        ),
        (
            "another path",
            post("", ask).into_iter().map(|b| if b == b'v' { b'w' } else { b }).collect(),
            404,
            "nothing at this path",
        ),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, ""),
        ("no version", b"GET /health\r\n\r\n".into(), 400, ""),
    ];
    for (name, request, expected, reason) in &cases {
        let answer = service.raw(request);
        let got = status(&answer);
        assert!(got == Some(*expected) && answer.contains(reason), "{name}: {}", shortened(&answer));
        assert!(answer.len() < 1_000, "{name}: an answer of {} bytes", answer.len());
        assert_eq!(service.json("GET", "/health", ""), (200, json!({"status": "ok"})), "{name}");
    }
    ordinary(&service, pin);
    // Only one is processed at a time. It takes a little more than its body, and what its prompt needs until it is
    // refused.
    let used = service.peak_kib() - before;
    assert!(used < stated_kib() / 2, "{used} KiB");
}

fn shortened(text: &str) -> String {
    text.chars().take(600).collect()
}

fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(("127.0.0.1", service.port)).unwrap()
}

fn nobody_is_waited_for(folder: &Path) {
    let mut service = Service::start(folder, &nano(), &OPTIONS);
    let pin = &pin_arguments()[0];
    let within = |seconds: f64, start: Instant, what: &str| {
        let took = start.elapsed().as_secs_f64();
        assert!(took < seconds, "{what}: {took:.1} s");
    };

    // All connections, and as many again, by clients that send a byte now and then; ordinary clients do not notice.
    let head = format!("{HEAD}Content-Length: 100000\r\n\r\n{{");
    let mut slow: Vec<_> = (0..2 * CONNECTIONS).map(|_| connect(&service)).collect();
    for client in &mut slow {
        let _ = client.write_all(head.as_bytes());
    }
    let start = Instant::now();
    assert_eq!(service.json("GET", "/health", "").0, 200);
    ordinary(&service, pin);
    within(5.0, start, "with all connections taken");
    // The slow clients do not stay either: within a second they have an answer, or were closed to make room.
    let dripping = Instant::now();
    while slow.iter_mut().any(|c| c.write_all(b" ").is_ok()) {
        within(20.0, dripping, "dripping clients");
        sleep(Duration::from_millis(100));
    }
    drop(slow);

    // Requests one after the other, without waiting for answers.
    let mut client = connect(&service);
    let ask = String::from_utf8(prompt("x")).unwrap();
    let one =
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{ask}", ask.len());
    client.write_all(one.repeat(9).as_bytes()).unwrap();
    client.write_all(&get("/health")).unwrap();
    assert_eq!(read_all(client).matches("HTTP/1.1 200 OK").count(), 10);

    // A client that closes its half of the connection is answered, however long that takes; with HTTP/1.0, too.
    let long = json!({"prompt": "甲：你好", "n": 16, "max_tokens": 400, "seed": 4}).to_string();
    for (version, end) in [("HTTP/1.1", "\r\n0\r\n\r\n"), ("HTTP/1.0", "}}")] {
        let mut client = connect(&service);
        let head = format!(
            "POST /v1/completions {version}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            long.len()
        );
        client.write_all((head + &long).as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answer = read_all(client);
        assert!(status(&answer) == Some(200) && answer.ends_with(end), "{}", shortened(&answer));
        assert!(answer.contains("\"completion_tokens\""), "{}", shortened(&answer));
    }

    // Clients that read nothing: of a stream, and of more answers than the system buffers for them.
    let stream = json!({"prompt": "甲：你好", "n": 128, "max_tokens": 400, "logprobs": 100, "stream": true});
    let deaf = service.ask(stream);
    service.wait("a start", |stats| stats["running"].as_u64() > Some(0));
    let mut flood = connect(&service);
    flood.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let stats = "GET /stats HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    while flood.write_all(stats.as_bytes()).is_ok() {}
    let start = Instant::now();
    ordinary(&service, pin);
    service.at_rest();
    within(40.0, start, "clients that take nothing");
    drop((deaf, flood));

    // No file descriptor is left: new connections wait until there is one.
    let files = |soft| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let pid = service.process.id() as libc::pid_t;
        // SAFETY: both point to a `rlimit`; the process is ours.
        unsafe {
            assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit), 0);
            limit.rlim_cur = soft;
            assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()), 0);
        }
    };
    files(3);
    // A thread that already waits for a connection has a file descriptor for it, so the first may be answered at once.
    let mut waiting = [(); 2].map(|()| {
        let mut client = connect(&service);
        client.write_all(&get("/health")).unwrap();
        client
    });
    waiting[1].set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(waiting[1].read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    files(200);
    for client in waiting {
        assert_eq!(status(&read_all(client)), Some(200));
    }

    // At SIGTERM, the service does not wait for clients that have not sent a request.
    let idle = connect(&service);
    let mut slow = connect(&service);
    slow.write_all(head.as_bytes()).unwrap();
    assert_eq!(service.json("GET", "/health", "").0, 200); // both are accepted
    let start = Instant::now();
    signal(&service.process, libc::SIGTERM);
    assert!(service.process.wait().unwrap().success());
    within(5.0, start, "SIGTERM");
    assert_eq!((read_all(idle).as_str(), status(&read_all(slow))), ("", None));
}

/// If as many requests are being answered as there may be connections, other clients get a 503. A second SIGTERM ends
/// all.
fn more_than_it_can_answer(folder: &Path) {
    let mut service = Service::start(folder, &nano(), &["--connections", "2"]);
    let long = json!({"prompt": "甲：你好", "n": 24, "max_tokens": 400, "seed": 4, "stream": true});
    let mut busy: Vec<_> = (0..2).map(|_| service.ask(long.clone())).collect();
    for client in &mut busy {
        client.read_exact(&mut [0; 200]).unwrap();
    }
    let (code, body) = service.json("POST", "/v1/completions", r#"{"prompt": "x"}"#);
    assert_eq!((code, body["error"]["type"].as_str()), (503, Some("busy")));
    assert_eq!(service.json("GET", "/health", "").0, 200);
    signal(&service.process, libc::SIGTERM);
    sleep(Duration::from_millis(200));
    assert!(service.process.try_wait().unwrap().is_none(), "requests are under way");
    signal(&service.process, libc::SIGTERM);
    let start = Instant::now();
    let answers: Vec<_> = busy.into_iter().map(read_all).collect();
    assert!(service.process.wait().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(10));
    for answer in answers {
        assert!(
            answer.contains("\"cancelled\"") && answer.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"),
            "{answer}"
        );
    }
}

/// Kinds of hostile clients. Each function acts once, and is called again and again.
const HOSTILE: [fn(&Service); 12] = [
    |s| drop(s.raw(&post("", "[".repeat(100_000).as_bytes()))),
    |s| drop(s.raw(&post("", &prompt(&"a ".repeat(BODY / 2 - 20))))),
    |s| drop(s.raw(&post("", format!(r#"{{"stop":[{}"#, r#""","#.repeat(80_000)).as_bytes()))),
    |s| drop(s.raw(&post("Content-Encoding: gzip\r\n", &[31; 300_000]))),
    |s| drop(s.raw(&chunked(&vec![b' '; 8 << 20]))),
    |s| drop(s.raw(&[HEAD.as_bytes(), &vec![b'a'; 1 << 20]].concat())),
    // Bodies that stop just before their end, held as long as possible.
    |s| {
        let mut clients: Vec<_> = (0..16).map(|_| connect(s)).collect();
        let body = prompt(&"a".repeat(BODY - 50));
        for client in &mut clients {
            let _ = client.write_all(&post("", &body)[..BODY - 50]);
        }
        sleep(Duration::from_millis(1500));
    },
    // Bytes now and then.
    |s| {
        let mut clients: Vec<_> = (0..2 * CONNECTIONS).map(|_| connect(s)).collect();
        for byte in format!("{HEAD}Content-Length: 9\r\n\r\n").bytes().take(30) {
            clients.iter_mut().for_each(|c| drop(c.write_all(&[byte])));
            sleep(Duration::from_millis(100));
        }
    },
    // Many connections that send nothing.
    |s| {
        let clients: Vec<_> = (0..100).map(|_| connect(s)).collect();
        sleep(Duration::from_millis(10));
        drop(clients);
    },
    // Streams that nobody reads.
    |s| {
        let ask = json!({"prompt": "甲：你好", "n": 8, "max_tokens": 300, "logprobs": 100, "stream": true});
        let clients: Vec<_> = (0..3).map(|_| s.ask(ask.clone())).collect();
        sleep(Duration::from_secs(2));
        drop(clients);
    },
    // Whole answers of the greatest size, closed before their end.
    |s| {
        let ask = json!({"prompt": "甲：你好", "n": 4, "max_tokens": 80, "logprobs": 100});
        let clients: Vec<_> = (0..3).map(|_| s.ask(ask.clone())).collect();
        sleep(Duration::from_millis(500));
        drop(clients);
    },
    // Answers that nobody reads.
    |s| {
        let mut client = connect(s);
        client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let stats = "GET /stats HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
        for _ in 0..500 {
            if client.write_all(stats.as_bytes()).is_err() {
                break;
            }
        }
    },
];

/// Tells the others to end, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All of them at once for some seconds; `WELM_LOAD_SECONDS=300` for the long version. Every ordinary request gets its
/// right answer.
fn all_at_once(folder: &Path) {
    let seconds: u64 = std::env::var("WELM_LOAD_SECONDS").map_or(6, |s| s.parse().unwrap());
    let mut service = Service::start(folder, &nano(), &OPTIONS);
    ordinary(&service, &pin_arguments()[0]);
    let before = service.peak_kib();
    let (over, hostile) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; HOSTILE.len()]);
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        for (client, count) in HOSTILE.iter().zip(&hostile) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    client(&service);
                    count.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(20));
                }
            });
        }
        let _ends = Ends(&over);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            for pin in &pin_arguments() {
                slowest = slowest.max(ordinary(&service, pin));
                assert_eq!(service.json("GET", "/health", "").0, 200);
                answered += 2;
            }
        }
    });
    let (peak, stated) = (service.peak_kib() - before, stated_kib());
    println!(
        "{seconds} s: {answered} ordinary requests answered, the slowest in {slowest:.1?}; hostile ones {hostile:?}; \
         {before} KiB before, {peak} KiB more at most, {stated} KiB stated"
    );
    service.at_rest();
    assert!(hostile.iter().all(|n| n.load(Ordering::Relaxed) > 0), "{hostile:?}");
    assert!(peak < stated, "{peak} KiB, stated {stated}");
    signal(&service.process, libc::SIGTERM);
    assert!(service.process.wait().unwrap().success());
}

#[test]
fn the_service_under_hostile_clients() {
    let folder = build("examples/cpp", Shared, &["serve"]);
    its_arguments(folder.path());
    hostile_requests_have_their_answer(folder.path());
    nobody_is_waited_for(folder.path());
    more_than_it_can_answer(folder.path());
    all_at_once(folder.path());
}
