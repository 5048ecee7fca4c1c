//! The service of examples/cpp, running, and requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The service, running.
pub(crate) struct Service {
    pub(crate) process: Child,
    pub(crate) port: u16,
    _out: BufReader<ChildStdout>,
}

impl Service {
    pub(crate) fn start(folder: &Path, model: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(folder.join("serve"));
        command.arg("--model").arg(model).args(["--port", "0"]).args(options).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok());
        Service {
            process,
            port: port.unwrap_or_else(|| panic!("expected an address, got {line}")),
            _out: out,
        }
    }

    /// Sends a request, for which the server closes the connection after its answer.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        stream
    }

    /// Sends these bytes and returns all that comes back, however the connection ends.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let _ = stream.write_all(bytes); // the answer may come, and the connection end, before all of them are sent
        read_all(stream)
    }

    /// The peak memory of the process, in KiB.
    pub(crate) fn peak_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a process that runs");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn ask(&self, body: Value) -> TcpStream {
        self.send("POST", "/v1/completions", &body.to_string())
    }

    pub(crate) fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, text) = read_answer(self.send(method, path, body));
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e} in {text}")))
    }

    pub(crate) fn stats(&self) -> Value {
        self.json("GET", "/stats", "").1
    }

    /// Waits until the condition holds, but not for ever.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let stats = self.stats();
            if condition(&stats) {
                return stats;
            }
            assert!(Instant::now() < until, "waited for {what}; {stats}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn at_rest(&self) -> Value {
        self.wait("rest", |stats| stats["open"] == 0 && stats["blocks_used"] == 0)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads all that comes until the connection ends in any way, but not for ever.
pub(crate) fn read_all(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    assert!(!ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "no end within a minute");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Status and body of an answer, put together if it comes in chunks.
pub(crate) fn read_answer(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let split = |bytes: &[u8], at: &[u8]| {
        let found = bytes.windows(at.len()).position(|w| w == at)?;
        Some((String::from_utf8(bytes[..found].to_vec()).unwrap(), bytes[found + at.len()..].to_vec()))
    };
    let (head, body) = split(&bytes, b"\r\n\r\n")
        .unwrap_or_else(|| panic!("expected an answer, got {:?}", String::from_utf8_lossy(&bytes)));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, String::from_utf8(body).unwrap());
    }
    // A character may be in two chunks.
    let (mut whole, mut rest) = (Vec::new(), body);
    loop {
        let (len, after) = split(&rest, b"\r\n").expect("a chunk");
        let len = usize::from_str_radix(&len, 16).expect("the length of a chunk");
        if len == 0 {
            return (status, String::from_utf8(whole).unwrap());
        }
        whole.extend(&after[..len]);
        rest = after[len..].strip_prefix(b"\r\n").expect("the end of a chunk").to_vec();
    }
}

/// The events of a stream, of which the last is the end.
pub(crate) fn events(body: &str) -> Vec<Value> {
    let all = body.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("expected an end, got {body}"));
    all.split_terminator("\n\n")
        .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}
