//! What is estimated, beside what is measured while models load: for every family, every stored type and every type to
//! compute with.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::load::Source;
use crate::families;
use crate::kv_cache::KvCache;
use crate::memory::tests::memory_bytes;
use crate::options::{CacheDtype, Dtype};
use crate::tokenizer::{GgufVocab, Tokenizer};
use crate::transformer::Weights;
use crate::transformer::tests::heap_bytes;
use crate::weights::gguf::Gguf;
use crate::weights::gguf::tests::{Writer, string};
use crate::weights::slab::tests::mapped_bytes;

#[test]
fn every_limit_counts_what_it_limits() {
    let estimate = Estimate {
        mapped_bytes: 1_000,
        converted_bytes: 100,
        cache_bytes: 50,
        scratch_bytes: 10,
        context_tokens: 16,
        cache_tokens: 5 * BLOCK_TOKENS,
    };
    let with = |memory, address_space, data| {
        estimate.check(Available { memory, address_space, data }, 0).map_err(|e| match e {
            Error::OutOfMemory { required: 1_160, available, fitting_cache_tokens, .. } => {
                (available, fitting_cache_tokens)
            }
            other => panic!("{other}"),
        })
    };
    assert_eq!(with(None, None, None), Ok(()));
    assert_eq!(with(Some(1_160), Some(160), Some(160)), Ok(()));
    assert_eq!(with(Some(1_159), None, None), Err((1_159, Some(4 * BLOCK_TOKENS))));
    assert_eq!(with(None, Some(120), None), Err((1_120, Some(BLOCK_TOKENS))));
    assert_eq!(with(Some(1_160), Some(160), Some(0)), Err((1_000, None)));
    // With 2 bytes of scratch for each of the five blocks, 1,100 bytes do not depend on the cache.
    let limited = Available { memory: Some(1_124), ..Available::default() };
    let error = estimate.check(limited, 2).unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { fitting_cache_tokens: Some(tokens), .. } if tokens == 2 * BLOCK_TOKENS)
    );
}

#[test]
fn a_step_has_the_tokens_that_were_asked_for_or_the_devices_own() {
    fn chunk<B: Backend>(context: Option<usize>, asked: Option<usize>) -> usize {
        let options = LoadOptions { context_tokens: context, chunk_tokens: asked, ..LoadOptions::default() };
        let limits = Limits::of::<B>(&ModelConfig::welm_xl(), &options).unwrap();
        assert_eq!(limits.max_rows, limits.chunk_tokens + options.max_running);
        limits.chunk_tokens
    }
    for (context, asked, want) in
        [(None, None, 256), (Some(16), None, 256), (None, Some(7), 7), (Some(16), Some(4_000), 4_000)]
    {
        assert_eq!(chunk::<Cpu>(context, asked), want);
    }
    #[cfg(feature = "kernels")]
    for (context, asked, want) in [
        (None, None, 2_048),
        (Some(700), None, 700),
        (Some(16), None, 256),
        (None, Some(7), 7),
        (Some(16), Some(4_000), 4_000),
    ] {
        assert_eq!(chunk::<crate::backend::cuda::Cuda>(context, asked), want);
    }
}

/// What this thread takes by `work`, and keeps.
fn taken<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let held = || heap_bytes() + memory_bytes();
    let before = held();
    let result = work();
    (result, (held() - before) as u64)
}

/// Loads all that a model consists of, and compares.
fn compare(source: &Source, options: &LoadOptions, what: &str) {
    let config = &source.config;
    let estimate = Estimate::of_source::<Cpu>(source, options).unwrap();
    let limits = Limits::of::<Cpu>(config, options).unwrap();
    let (mut cpu, arithmetic) = taken(|| Cpu::new(config, options, limits).unwrap());
    let ((weights, converted), mapped) =
        mapped_bytes(|| taken(|| Weights::load(&mut cpu, source, |_| Ok(())).unwrap()));
    let layer = |cpu: &mut Cpu| cpu.kv_layer(limits.n_blocks);
    let (kv, cache) = taken(|| KvCache::new(config.n_layers, || layer(&mut cpu)).unwrap());
    let (scratch, buffers) = taken(|| Scratch::new(&mut cpu, config, limits).unwrap());
    drop((weights, kv, scratch));
    // Of a layer: the structures that hold its parts, and what the allocator adds to each vector.
    let structures = 3_072 * (config.n_layers as u64 + 1);
    for (name, estimated, measured, slack) in [
        ("mapped", estimate.mapped_bytes, if options.copy_weights { 0 } else { mapped }, 0),
        ("converted", estimate.converted_bytes, converted, structures),
        ("cache", estimate.cache_bytes, cache, 1_024),
        ("scratch", estimate.scratch_bytes, arithmetic + buffers, 4_096),
    ] {
        let off = estimated.abs_diff(measured).saturating_sub(slack) as f64;
        assert!(off <= 0.03 * measured as f64, "{what}: {name}: estimated {estimated}, measured {measured}");
    }
    // Of parts that are no more than their structures, at least none is forgotten.
    assert!(estimate.converted_bytes > 0 && estimate.converted_bytes <= converted, "{what}");
}

/// Compares for every type to compute with, and for one thread and two.
fn compare_all(source: &Source, what: &str) {
    for dtype in [Dtype::Auto, Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        for (threads, copy_weights, cache_dtype) in
            [(1, false, CacheDtype::F32), (2, true, CacheDtype::Bf16), (1, true, CacheDtype::F16)]
        {
            let options = LoadOptions {
                dtype,
                threads: Some(threads),
                copy_weights,
                cache_dtype,
                cache_tokens: Some(512),
                max_running: 8,
                ..LoadOptions::default()
            };
            compare(source, &options, &format!("{what} as {dtype}, {threads} threads"));
        }
    }
}

/// Models of all families, as folders and as GGUF files.
fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_model = |path: &PathBuf| path.join("config.json").exists() || path.join("model.gguf").exists();
    paths.filter(is_model).collect()
}

fn open(path: &Path) -> Source {
    let gguf = path.join("model.gguf");
    match gguf.exists() {
        true => Source::open(&gguf, Some(&Gguf::open(&gguf).unwrap()), false).unwrap(),
        false => Source::open(path, None, false).unwrap(),
    }
}

#[test]
fn every_family_takes_what_was_estimated() {
    let mut seen = HashSet::new();
    for path in fixtures() {
        let source = open(&path);
        compare_all(&source, &path.file_name().unwrap().to_string_lossy());
        seen.insert((source.config.family.clone(), path.join("model.gguf").exists()));
    }
    for name in families::model_types() {
        assert!(seen.contains(&(name.to_string(), false)), "no model of {name} was compared");
    }
    for name in families::architectures() {
        assert!(seen.contains(&(name.to_string(), true)), "no GGUF file of {name} was compared");
    }
}

/// Old writers of safetensors put tensors anywhere. Rows of one tensor that lie apart in the matrix must not be copied with
/// the whole tensor.
#[test]
fn tensors_that_are_not_aligned_are_converted_once() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/neox_sequential");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture.join("config.json"), folder.path().join("config.json")).unwrap();
    let aligned = std::fs::read(fixture.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(aligned[..8].try_into().unwrap());
    let (header, data) = aligned[8..].split_at(len as usize);
    let file = [&(len + 1).to_le_bytes(), header, b" ", data].concat();
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    let source = open(folder.path());
    compare_all(&source, "neox that is not aligned");
    let estimate = Estimate::of_source::<Cpu>(&source, &LoadOptions::default()).unwrap();
    assert_eq!(estimate.mapped_bytes, 0);
}

/// A Llama whose matrices are stored so; values of `v` so.
fn gguf(stored: StoredType, v: StoredType) -> tempfile::NamedTempFile {
    const DIM: u64 = 256;
    let u32 = |x: u64| (x as u32).to_le_bytes();
    let mut writer = Writer::default()
        .key("general.architecture", 8, &string("llama"))
        .key("llama.context_length", 4, &u32(64))
        .key("llama.embedding_length", 4, &u32(DIM))
        .key("llama.block_count", 4, &u32(1))
        .key("llama.feed_forward_length", 4, &u32(2 * DIM))
        .key("llama.attention.head_count", 4, &u32(4))
        .key("llama.attention.head_count_kv", 4, &u32(2))
        .key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    let mut tensor = |name: &str, stored: StoredType, dims: &[u64]| {
        let format = stored.format();
        let values = dims.iter().product::<u64>() as usize;
        let bytes = vec![0; values / format.values() * format.bytes()];
        let written = std::mem::take(&mut writer);
        writer = written.tensor(&format!("{name}.weight"), dims, stored.ggml_number(), &bytes);
    };
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        tensor(name, StoredType::F32, &[DIM]);
    }
    tensor("token_embd", stored, &[DIM, 96]);
    tensor("blk.0.attn_q", stored, &[DIM, DIM]);
    tensor("blk.0.attn_k", stored, &[DIM, DIM / 2]);
    tensor("blk.0.attn_v", v, &[DIM, DIM / 2]);
    tensor("blk.0.attn_output", stored, &[DIM, DIM]);
    tensor("blk.0.ffn_gate", stored, &[DIM, 2 * DIM]);
    tensor("blk.0.ffn_up", stored, &[DIM, 2 * DIM]);
    tensor("blk.0.ffn_down", stored, &[2 * DIM, DIM]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), writer.finish()).unwrap();
    file
}

#[test]
fn every_stored_type_takes_what_was_estimated() {
    let weights = || StoredType::ALL.iter().copied().filter(|stored| stored.format().is_weight());
    // Alone, and with another type within a matrix.
    for (stored, v) in weights().map(|s| (s, s)).chain(weights().map(|s| (StoredType::Q4_K, s))) {
        let file = gguf(stored, v);
        let source = Source::open(file.path(), Some(&Gguf::open(file.path()).unwrap()), false).unwrap();
        compare_all(&source, &format!("{stored:?} and {v:?}"));
    }
}

#[test]
fn an_int8_folder_takes_what_was_estimated() {
    let folder = tempfile::tempdir().unwrap();
    for fixture in ["llama_gqa", "neox_odd"] {
        let int8 = folder.path().join(fixture);
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(fixture);
        crate::quantize(&from, &int8, |_| true).unwrap();
        compare_all(&Source::open(&int8, None, false).unwrap(), fixture);
    }
}

/// A tokenizer that takes many tokens, by its kind, and a `tokenizer.json`.
#[test]
fn tokenizers_take_what_was_estimated() {
    const N: usize = 30_000;
    let texts = |n| (0..n).map(|i: usize| format!("{}{i:x}", ["t", "to", "tok"][i % 3])).collect::<Vec<_>>();
    let of_gguf = |model: &str| {
        let mut vocab = GgufVocab { model: model.into(), pre: "gpt-2".into(), ..GgufVocab::default() };
        vocab.tokens = texts(N);
        vocab.token_types = (0..N).map(|i| if i < 500 { 3 } else { 1 }).collect();
        vocab.scores = (0..N).map(|i| -(i as f32)).collect();
        vocab
    };
    let compare = |name: &str, make: &dyn Fn() -> Tokenizer| {
        let (tokenizer, measured) = taken(make);
        let off = tokenizer.bytes().abs_diff(measured) as f64 / measured as f64;
        assert!(off < 0.05 && measured > 1 << 20, "{name}: {} and {measured}", tokenizer.bytes());
    };
    for model in ["gpt2", "llama", "t5"] {
        compare(model, &|| Tokenizer::from_gguf(of_gguf(model)).unwrap());
    }
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/welm-nano/tokenizer.json");
    compare("welm-nano", &|| Tokenizer::from_json_file(&nano).unwrap());
}
