//! Tests of the CPU benchmark on small random models: its figures mean little there, but all of its code runs. Also
//! tests of `peers/report.py` on fixed results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use welm_benches::random_model;
use welm_core::{LayerConfig, ModelConfig};

/// A small model of a family.
fn small(family: &str) -> ModelConfig {
    let mut config = random_model::shape(family).unwrap();
    (config.vocab_size, config.dim, config.n_layers, config.hidden_dim) = (300, 128, 4, 1024);
    config.n_heads = if config.n_heads == config.n_kv_heads { 2 } else { 4 };
    config.n_kv_heads = 2;
    config.head_dim = config.dim / config.n_heads;
    config.ropes[0].rotary_dim = config.head_dim;
    config.layers = LayerConfig::all(config.head_dim, config.n_layers);
    config
}

fn bench(arguments: &[&str]) -> (Output, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_welm-bench-cpu")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let records = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (output, records)
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

#[test]
fn models_of_both_families_are_timed() {
    for family in ["welm-medium", "qwen-0.5b"] {
        let folder = tempfile::tempdir().unwrap();
        let config = small(family);
        random_model::write(folder.path(), &config).unwrap();
        let read = ModelConfig::from_folder(folder.path()).unwrap();
        assert_eq!(read, config, "what is written is what is read");
        let path = folder.path().to_str().unwrap();
        let what =
            ["--prefill", "20,70", "--decode", "1,3", "--context", "5,40", "--tokens", "6", "--threads", "2"];
        let (output, records) =
            bench(&[&["run", path, "--chunk-tokens", "32", "--slack", "600"], &what[..]].concat());
        assert!(output.status.success(), "{}", said(&output));
        let kinds: Vec<&str> = records.iter().map(|r| r["record"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["load", "prefill", "prefill", "decode", "decode", "decode", "decode", "end"]);
        for record in &records[1..7] {
            assert!(record["tok_per_s"].as_f64() > Some(0.0), "{record}");
        }
        // 4 layers of 128 x (q, k, v + att + up + hidden) weights, and the output; each is multiplied and added.
        let layer = 128 * (config.qkv_dim() + 128 + config.up_dim() + 1024) as u64;
        assert_eq!(records[1]["product_ops"], 2 * (20 * 4 * layer + 300 * 128), "{}", records[1]);
        // Three sequences, longer than their prompts of 40, and no longer than they were asked for.
        let three = &records[6];
        assert_eq!((&three["batch"], &three["context"]), (&json!(3), &json!(40)));
        assert!(three["tokens"].as_array().unwrap().iter().all(|n| n.as_u64() >= Some(18)), "{three}");
        let context = three["mean_context"].as_f64().unwrap();
        assert!((42.0..1000.0).contains(&context), "{three}");
        // The weights of a step, and keys and values of 3 x 40 positions at least, in bf16.
        let keys = 3 * 40 * 4 * 2 * (config.n_kv_heads * config.head_dim) as u64 * 2;
        let bytes = three["step_bytes"].as_u64().unwrap();
        assert!(
            bytes > 4 * layer + 300 * 128 + keys && bytes < 2 * (4 * layer + 300 * 128 + keys),
            "{three}"
        );
    }
}

/// The logits are finite numbers, because the probability of each token is.
#[test]
fn random_models_say_something() {
    use welm_core::{Device, GenerateOptions, LoadOptions, Model};
    for family in ["welm-medium", "qwen-0.5b"] {
        let folder = tempfile::tempdir().unwrap();
        random_model::write(folder.path(), &small(family)).unwrap();
        let options = LoadOptions { device: Device::Cpu, threads: Some(1), ..LoadOptions::default() };
        let model = Model::load(folder.path(), &options).unwrap();
        let options = GenerateOptions { logprobs: Some(5), ..GenerateOptions::greedy(4) };
        let answer = model.generate(&vec![5, 6, 7], &options).unwrap();
        assert_eq!(answer.choices[0].tokens.len(), 4);
        for token in &answer.choices[0].tokens {
            let all = token.alternatives.iter().map(|a| a.1);
            assert!(
                all.chain(token.logprob).all(|p| p.is_finite() && (-30.0..0.0).contains(&p)),
                "{token:?}"
            );
        }
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let (output, _) = bench(&["write", "welm-tiny", "nowhere"]);
    assert!(
        !output.status.success() && said(&output).contains("expected one of welm-medium"),
        "{}",
        said(&output)
    );
    let (output, _) = bench(&["limits", "--threads", "0"]);
    assert!(!output.status.success() && said(&output).contains("expected threads"), "{}", said(&output));
    let (output, records) = bench(&["limits", "--threads", "2", "--mib", "8", "--passes", "1", "--json"]);
    assert!(
        output.status.success() && records[0]["read_gb_per_s"]["best"].as_f64() > Some(0.0),
        "{records:?}"
    );
}

fn peers(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(file)
}

/// Three rounds on an invented machine with 1,000 int8 GOP/s and memory of 50 to 100 GB/s.
fn canned() -> Value {
    let limit = |read: f64| {
        json!({"record": "limits", "cpu": "Canned", "threads": 2, "read_gb_per_s": {"best": read},
               "int8_gop_per_s": {"best": 1000.0}, "f32_gflop_per_s": {"best": 250.0}})
    };
    let beside = |read: f64,
                  engine: &str,
                  setting: &str,
                  point: &str,
                  round: usize,
                  rate: f64,
                  own: Value| {
        let load = json!({"record": "load", "seconds": 1.0, "ready_seconds": 2.0, "parameters": 1_000_000_000u64,
                          "weight_bytes": 1_062_500_000u64});
        let end =
            json!({"record": "end", "peak_rss_bytes": 1_500_000_000u64, "rss_before_bytes": 100_000_000u64});
        json!({"shape": "canned-1b", "threads": 2, "point": point, "engine": engine, "setting": setting,
               "round": round, "tok_per_s": rate, "records": [load, own, end], "limits": limit(read)})
    };
    let sample = |engine: &str, setting: &str, point: &str, round: usize, rate: f64, own: Value| {
        beside(100.0, engine, setting, point, round, rate, own)
    };
    let prompt = json!({"record": "prefill", "n": 100, "product_ops": 200_000_000_000u64});
    let step =
        json!({"record": "decode", "batch": 4, "step_bytes": 2_000_000_000u64, "step_ops": 8_000_000_000u64});
    let peer = json!({"record": "decode"});
    json!({
        "date": "2026-01-01", "system": "Linux", "commit": "abc", "packages": ["peer==1"], "rounds": 3, "tokens": 8,
        "limits": [limit(90.0), limit(100.0), limit(120.0)],
        "samples": [
            sample("welm int8", "default", "p100", 0, 250.0, prompt.clone()),
            sample("welm int8", "default", "p100", 1, 350.0, prompt.clone()),
            sample("welm int8", "default", "p100", 2, 400.0, prompt),
            // The other setting was a little worse in the first round, so it was not tried again.
            sample("llama.cpp Q8_0", "flash attention auto", "p100", 0, 145.0, peer.clone()),
            sample("llama.cpp Q8_0", "flash attention off", "p100", 0, 150.0, peer.clone()),
            sample("llama.cpp Q8_0", "flash attention off", "p100", 1, 140.0, peer.clone()),
            sample("llama.cpp Q8_0", "flash attention off", "p100", 2, 130.0, peer.clone()),
            sample("welm int8", "default", "d4@128", 0, 180.0, step.clone()),
            beside(50.0, "welm int8", "default", "d4@128", 1, 100.0, step.clone()),
            beside(60.0, "welm int8", "default", "d4@128", 2, 90.0, step),
            sample("llama.cpp Q8_0", "flash attention auto", "d4@128", 0, 60.0, peer),
        ],
        "failures": [{"shape": "canned-1b", "threads": 2, "point": "d4@128", "engine": "CTranslate2 int8",
                      "setting": "default", "round": 0, "error": "exit status 1"}],
    })
}

#[test]
fn results_make_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("results.json"), canned().to_string()).unwrap();
    let mut python = Command::new("python3");
    python.arg(peers("report.py")).arg(at("results.json")).arg("--table").arg(at("table.md"));
    let output = python.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("python3 is there");
    assert!(output.status.success(), "{}", said(&output));
    let table = fs::read_to_string(at("table.md")).unwrap();
    let row = |words: &str| {
        table
            .lines()
            .find(|l| l.contains(words))
            .unwrap_or_else(|| panic!("no {words} in\n{table}"))
            .to_string()
    };
    // Middles of the rounds; 2 x 10^11 operations for 100 tokens are 500 tokens a second at most.
    assert_eq!(row("prompt of 100 |"), "| prompt of 100 | 2 | 350 | 140 | 500 | 0.70 | 2.50 |");
    // 2 GB at 100 GB/s are 50 steps a second; 180 of 200 tokens, 100 of 100, 90 of 120: the middle of these shares.
    assert_eq!(row("4 sequences at 128 |"), "| 4 sequences at 128 | 2 | 100 | 60.0 | 120 | 0.90 | 1.67 |");
    assert_eq!(row("| llama.cpp Q8_0 | 1.00"), "| llama.cpp Q8_0 | 1.00 | 2.00 | 1400 |");
    assert!(
        row("flash attention off").contains("p100") && row("exit status 1").contains("CTranslate2"),
        "{table}"
    );
}

/// The shapes are the same for every engine.
#[test]
fn peers_have_the_same_shapes() {
    let models = fs::read_to_string(peers("models.py")).unwrap();
    for (name, arch) in [("welm-medium", "gptneox"), ("qwen-0.5b", "qwen2")] {
        let c = random_model::shape(name).unwrap();
        let line =
            models.lines().find(|l| l.contains(&format!("\"{name}\": Shape("))).expect("the shape is there");
        let tied = if c.tied_output { "True" } else { "False" };
        let sizes = [c.n_layers, c.dim, c.n_heads, c.n_kv_heads, c.hidden_dim, c.vocab_size, c.max_context];
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        let wanted = format!("Shape(\"{arch}\", {}, {tied}", sizes.join(", "));
        assert!(line.replace('_', "").contains(&wanted), "{line}\n{wanted}");
    }
}
