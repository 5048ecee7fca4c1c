//! Tests of the benchmark on the emulator: its figures have no meaning there, but all of its code runs. Also tests of
//! `gpu/peer.py` and `gpu/run`, with fake programs for what only a machine with a GPU has.

#[path = "gpu/script.rs"]
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use welm_benches::cases::{Epilogue, Form, Heads, Operands, Shape};
use welm_benches::random_model;
use welm_benches::record;
use welm_benches::timing::{Effort, Times, copy_bandwidth, time};
use welm_benches::whole::{self, Request};
use welm_core::{Activations, LayerConfig, ModelConfig};
use welm_kernels::Device;
use welm_tests::emulator::{Emulator, Options};

const EFFORT: Effort = Effort { samples: 1, sample_seconds: 0.0, cold_bytes: 20_000 };

fn small() -> Vec<Shape> {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 64 };
    let mut shapes = vec![
        Shape::Decode { heads, batch: 2, kv_len: 20 },
        Shape::Decode { heads, batch: 1, kv_len: 600 },
        Shape::Prefill { heads, n: 70 },
        Shape::Rope { heads, n: 17 },
        Shape::TopK { n: 2, vocab: 300, k: 8 },
    ];
    let few = [Operands::W8A16, Operands::R8A16, Operands::W16A16];
    let many = [Operands::W8A16, Operands::W16A16, Operands::W8A8, Operands::R8A8];
    let product = |operands, epilogue, n| Shape::Product { operands, epilogue, n, cols: 128, rows: 128 };
    shapes.extend(few.map(|operands| product(operands, Epilogue::Add, 3)));
    shapes.extend(many.map(|operands| product(operands, Epilogue::Gelu, 40)));
    for form in [Form::Bf16, Form::Int8, Form::Rotated, Form::RotatedInt8] {
        shapes.push(Shape::Norm { form, n: 5, dim: 192 });
        if form != Form::Bf16 {
            shapes.push(Shape::Convert { form, n: 5, dim: 192 });
        }
    }
    shapes
}

#[test]
fn every_kernel_is_timed() {
    for capability in [(8, 0), (9, 0)] {
        let device = Emulator::device(capability);
        let copy = copy_bandwidth(&device, &EFFORT, &[1 << 16, 1 << 20]).unwrap();
        let line = record::device(&device, copy);
        assert_eq!((&line["name"], line["copy_gb_per_s"].as_f64() > Some(0.0)), (&json!("emulator"), true));
        for shape in small() {
            let times = shape.measure(&device, &EFFORT).unwrap().expect("there is memory");
            assert!(times.us > 0.0 && times.least_us <= times.us && times.us <= times.most_us, "{times:?}");
            let line = record::kernel(&shape, Ok(times), copy);
            println!("{}", record::text(&line));
            assert!(line["of_copy"].as_f64() > Some(0.0), "{line}");
            assert_eq!(line["tera_per_s"].is_null(), shape.ops() == 0, "{line}");
        }
    }
}

#[test]
fn every_set_has_its_turn() {
    let device = Emulator::device((8, 0));
    let mut turns = Vec::new();
    let effort = Effort { samples: 2, ..EFFORT };
    let times = time(&device, &effort, 3, |set| {
        turns.push(set);
        Ok(())
    });
    assert_eq!((times.unwrap().launches % 3, &turns[..]), (0, &[0, 1, 2, 0, 1, 2, 0, 1, 2][..]));
}

#[test]
fn the_quick_shapes_are_of_all() {
    let (all, quick) = (Shape::all(), Shape::quick());
    for shape in &quick {
        assert!(all.contains(shape), "{shape:?}");
    }
    // `gpu/run` profiles the first of these, which `--only` finds.
    let line = |shape| record::text(&record::kernel(shape, Err(String::new()), 1.0));
    let lines: Vec<_> =
        quick.iter().map(|s| line(s).split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for what in ["product w8a16", "attention_decode", "product r8a8", "attention_prefill"] {
        assert!(lines.iter().any(|line| line.contains(what)), "{what}: {lines:?}");
    }
}

#[test]
fn no_memory_is_no_failure() {
    let device = Device::with_driver(Emulator::new(Options { memory_bytes: 30_000, ..Options::default() }));
    let heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: 64 };
    let shape = Shape::Decode { heads, batch: 4, kv_len: 64 };
    assert_eq!(shape.measure(&device, &EFFORT).unwrap(), None);
    assert_eq!(record::kernel(&shape, Err("no memory".into()), 1.0)["skipped"], "no memory");
}

/// The fewest bytes and operations, computed by hand.
#[test]
fn what_is_counted() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 };
    // Keys and values of 10 positions for 3 sequences, bf16; q and the result.
    let decode = Shape::Decode { heads, batch: 3, kv_len: 10 };
    assert_eq!(decode.bytes(), 3 * (10 * 2 * 2 * 64 * 2 + 2 * 4 * 64 * 2));
    assert_eq!(decode.ops(), 3 * 10 * 4 * 64 * 2 * 2);
    // Row i sees i + 1 keys.
    let prefill = Shape::Prefill { heads, n: 3 };
    assert_eq!(prefill.ops(), (1 + 2 + 3) * 4 * 64 * 2 * 2);
    let product = |operands| Shape::Product { operands, epilogue: Epilogue::Bf16, n: 2, cols: 64, rows: 8 };
    // Weights, their scales, the bias, the activations, their scales, the result.
    assert_eq!(product(Operands::W8A16).bytes(), 512 + 16 * 2 + 8 * 4 + 2 * 64 * 2 + 2 * 8 * 2);
    assert_eq!(product(Operands::W16A16).bytes(), 1024 + 8 * 4 + 2 * 64 * 2 + 2 * 8 * 2);
    assert_eq!(product(Operands::W8A8).bytes(), 512 + 16 * 2 + 8 * 4 + 2 * 64 + 4 * 4 + 2 * 8 * 2);
    assert_eq!(product(Operands::R8A8).bytes(), 512 + 8 * 4 + 8 * 4 + 2 * 64 + 2 * 4 + 2 * 8 * 2);
    assert_eq!(product(Operands::W8A8).ops(), 2 * 2 * 64 * 8);
    let norm = Shape::Norm { form: Form::Bf16, n: 2, dim: 64 };
    assert_eq!(norm.bytes(), 2 * 64 * 4 + 2 * 64 * 4 + 2 * 64 * 2);
    let rope = Shape::Rope { heads, n: 1 };
    assert_eq!(rope.bytes(), 64 * (4 * 2 * 2 + 2 * 2 * 2 * 2) + 64 / 2 * 2 * 4);
}

/// The shapes that a layer of the model has, in generated tokens, chunks and prompts.
#[test]
fn what_is_measured() {
    let shapes = Shape::all();
    let product = |operands, epilogue, n, cols, rows| Shape::Product { operands, epilogue, n, cols, rows };
    let (w8a16, r8a8) = (Operands::W8A16, Operands::R8A8);
    let mut wanted = vec![Shape::Decode {
        heads: Heads { n_heads: 32, n_kv_heads: 8, head_dim: 128 },
        batch: 1,
        kv_len: 2048,
    }];
    for operands in [w8a16, r8a8] {
        for n in [256, 512] {
            wanted.push(product(operands, Epilogue::Bf16, n, 5120, 15_360));
        }
        wanted.push(product(operands, Epilogue::Add, 2048, 5120, 5120));
        wanted.push(product(operands, Epilogue::Add, 2048, 20_480, 5120));
        wanted.push(product(operands, Epilogue::Gelu, 2048, 5120, 20_480));
    }
    wanted.extend([32, 64].map(|n| product(w8a16, Epilogue::Add, n, 20_480, 5120)));
    for shape in wanted {
        assert_eq!(shapes.iter().filter(|&&x| x == shape).count(), 1, "{shape:?}");
    }
}

/// Fractions of a limit, as in the formula.
#[test]
fn what_is_predicted() {
    for shape in Shape::all() {
        let predicted = shape.predicted();
        assert!(predicted > 0.0 && predicted < 1.0, "{shape:?}: {predicted}");
        println!("{:5.3} {shape:?}", predicted);
    }
    // A row of 5,120 columns, one block: a start, two round trips, 61 KB through one multiprocessor.
    let norm = Shape::Norm { form: Form::Bf16, n: 1, dim: 5120 };
    let bytes = (4 + 8 + 2) as f64 * 5120.0;
    let seconds = 1.5e-6 + 2.0 * 0.8e-6 + bytes / (12.0 * 5120.0 / 0.8e-6);
    assert!((norm.predicted() - bytes / 3.0e12 / seconds).abs() < 1e-9, "{}", norm.predicted());
    // More sequences fill the device, more rows fill tiles, and scales inside a product cost more than the product.
    let heads = Heads { n_heads: 32, n_kv_heads: 8, head_dim: 128 };
    let decode = |batch| Shape::Decode { heads, batch, kv_len: 2048 }.predicted();
    assert!(decode(1) < decode(8) && decode(8) < decode(64));
    let product = |operands, n| {
        Shape::Product { operands, epilogue: Epilogue::Bf16, n, cols: 5120, rows: 5120 }.predicted()
    };
    assert!(product(Operands::W8A16, 256) < product(Operands::W8A16, 2048));
    assert!(product(Operands::W8A8, 2048) < 0.5 * product(Operands::W8A16, 2048));
}

fn tiny() -> ModelConfig {
    let mut config = whole::welm_xl();
    (config.vocab_size, config.dim, config.n_layers, config.n_heads) = (300, 128, 2, 2);
    (config.n_kv_heads, config.head_dim, config.hidden_dim, config.max_context) = (2, 64, 256, 128);
    config.ropes[0].rotary_dim = 64;
    config.layers = LayerConfig::all(64, 2);
    config
}

#[test]
fn a_whole_model_is_timed() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny();
    random_model::write(folder.path(), &config).unwrap();
    let written = |folder: &Path| fs::metadata(folder.join("model.safetensors")).unwrap().modified().unwrap();
    let first = written(folder.path());
    random_model::write(folder.path(), &config).unwrap();
    assert_eq!(written(folder.path()), first, "a model that is there is written again");
    for activations in [Activations::Int16, Activations::Int8, Activations::Int8Rotated] {
        let request = Request { prompt: 40, tokens: 6, samples: 1 };
        let device = Emulator::device((8, 0));
        let whole = whole::measure(folder.path(), &device, activations, request).unwrap();
        // 2 x (3 + 1 + 2 + 2) x 128 x 128 weights in layers, and 300 x 128, padded to 384, in each of embedding and
        // output.
        let weights = 2 * 8 * 128 * 128 + 2 * 384 * 128;
        assert!(whole.weight_bytes > weights && whole.weight_bytes < weights * 9 / 8, "{whole:?}");
        assert!(whole.decode_bytes < whole.weight_bytes && whole.decode_bytes > weights / 2, "{whole:?}");
        let products = 2 * 40 * 2 * 8 * 128 * 128;
        assert!(whole.prefill_ops > products && whole.prefill_ops < products * 3 / 2, "{whole:?}");
        let [decode, prefill] = record::whole(&config, "int16", request.prompt, &whole, 1e9);
        assert!(decode["of_copy"].as_f64() > Some(0.0) && prefill["tera_per_s"].as_f64() > Some(0.0));
    }
}

/// The model that is timed on a GPU. Only its description is made here, not its weights.
#[test]
fn the_model_is_welm_xl() {
    let config = whole::welm_xl();
    assert_eq!((config.n_params() / 100_000_000, config.max_context), (107, 4096));
}

fn gpu(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu").join(file)
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// A record of every kind on an invented device, and possible results of PyTorch for the same shapes.
fn canned() -> (String, Value) {
    let times = |us: f64| Times { us, least_us: us, most_us: us, launches: 10 };
    let heads = Heads { n_heads: 40, n_kv_heads: 40, head_dim: 128 };
    let product =
        |operands, n| Shape::Product { operands, epilogue: Epilogue::Bf16, n, cols: 5120, rows: 20_480 };
    let config = whole::welm_xl();
    let model = whole::Whole {
        decode: times(5000.0),
        decode_bytes: 10_000_000_000,
        prefill: times(80_000.0),
        prefill_ops: 40_000_000_000_000,
        weight_bytes: 10_300_000_000,
        load_seconds: 12.0,
    };
    let copy = 2.5e12;
    let mut lines = vec![
        json!({"record": "device", "welm": "0.1.0", "name": "Canned", "capability": "9.0",
               "multiprocessors": 132, "memory_bytes": 80_000_000_000u64, "copy_gb_per_s": 2500.0}),
        record::kernel(&Shape::Decode { heads, batch: 1, kv_len: 16_384 }, Ok(times(150.0)), copy),
        record::kernel(
            &Shape::Decode { heads, batch: 64, kv_len: 16_384 },
            Err("out of device memory".into()),
            copy,
        ),
        record::kernel(&Shape::Prefill { heads, n: 2048 }, Ok(times(100.0)), copy),
        record::kernel(&product(Operands::W8A16, 1), Ok(times(50.0)), copy),
        record::kernel(&product(Operands::W8A8, 2048), Ok(times(500.0)), copy),
        record::kernel(&Shape::TopK { n: 1, vocab: 62_080, k: 64 }, Ok(times(8.0)), copy),
    ];
    lines.extend(record::whole(&config, "int8", 2048, &model, copy));
    let peer = json!({
        "torch": "2.0", "device": "Canned", "copy_gb_per_s": 3000.0,
        "bf16_tera_per_s": 800.0, "int8_tera_per_s": 1600.0,
        "kernels": [
            {"group": "attention_prefill", "sizes": {"n_heads": 40, "n_kv_heads": 40, "head_dim": 128, "n": 2048},
             "us": {"sdpa flash": 80.0, "sdpa cudnn": 75.0}, "failed": {"sdpa efficient": "not built"}},
            {"group": "product", "sizes": {"n": 2048, "cols": 5120, "rows": 20_480},
             "us": {"_int_mm": 450.0, "bf16 matmul": 700.0}, "failed": {}},
        ],
    });
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    (lines.join("\n") + "\n", peer)
}

#[test]
fn results_and_peers_make_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (lines, peer) = canned();
    // The last line is incomplete, as if the benchmark was stopped.
    fs::write(at("bench.jsonl"), lines + "{\"record\": \"kernel\", \"group\"").unwrap();
    fs::write(at("torch.json"), peer.to_string()).unwrap();
    let merge = |more: &[&str]| {
        let mut python = Command::new("python3");
        python.arg(gpu("peer.py")).arg(at("bench.jsonl")).args(more);
        python.arg("--record").arg(at("record.json")).arg("--table").arg(at("table.md"));
        let output = python.output().expect("python3 is there");
        assert!(output.status.success(), "{}", said(&output));
        let record: Value = serde_json::from_slice(&fs::read(at("record.json")).unwrap()).unwrap();
        (fs::read_to_string(at("table.md")).unwrap(), record)
    };
    let row = |table: &str, words: [&str; 2]| {
        let row = table.lines().find(|line| words.iter().all(|word| line.contains(word)));
        row.unwrap_or_else(|| panic!("no line with {words:?} in\n{table}")).to_string()
    };

    let torch = at("torch.json");
    let (table, record) = merge(&["--peer", torch.to_str().unwrap()]);
    println!("{table}");
    // The copy of PyTorch was the faster one: 2 x 40 x 128 x 2 x 16,385 bytes in 150 us are 0.75 of it.
    let decode = row(&table, ["attention_decode", "batch 1"]);
    assert!(decode.contains("| 0.746 of copy | 0."), "{decode}");
    let predicted = decode.split('|').nth(8).unwrap().trim().parse::<f64>().unwrap();
    assert!((predicted - record["results"][0]["predicted"].as_f64().unwrap()).abs() < 0.006, "{decode}");
    assert!(row(&table, ["attention_decode", "batch 64"]).contains("out of device memory"));
    // The best of PyTorch's, which took three quarters of the time.
    let prefill = row(&table, ["attention_prefill", "2048"]);
    assert!(prefill.contains("| sdpa cudnn 75 | 0.75 |"), "{prefill}");
    let w8a8 = row(&table, ["w8a8", "2048"]);
    assert!(w8a8.contains("| 0.537 of int8 |") && w8a8.contains("| _int_mm 450 | 0.9 |"), "{w8a8}");
    // 10 GB in 5 ms, and 40 T operations in 80 ms.
    assert!(row(&table, ["model_decode", "int8"]).contains("| 0.667 of copy |"));
    assert!(row(&table, ["model_prefill", "int8"]).contains("| 0.312 of int8, 0.625 of bf16 |"));
    assert_eq!(record["limits"]["copy_gb_per_s"], 3000.0);
    assert_eq!(record["results"].as_array().map(Vec::len), Some(8));
    assert!(
        record["results"].as_array().unwrap().iter().any(|r| r["failed"]["sdpa efficient"] == "not built")
    );

    // Without PyTorch there is no limit but the copy that the benchmark measured.
    let (table, record) = merge(&["--no-torch"]);
    assert!(row(&table, ["attention_decode", "batch 1"]).contains("| 0.895 of copy |"));
    assert!(table.contains("PyTorch: not there"), "{table}");
    assert_eq!(record["limits"]["int8_tera_per_s"], Value::Null);
}
