//! Compares the whole decoder with its formula in f64, for every field of a configuration in which models or layers
//! differ.

use std::collections::HashMap;

use safetensors::tensor::{Dtype as Stored, TensorView};

use super::*;
use crate::backend::cpu::Cpu;
use crate::checkpoint::load::{LinearSource, MatrixSource, NormSource};
use crate::config::{ModelSizes, NormKind, QkNorm, QueryScale, Rope, RopePairing};
use crate::options::{CacheDtype, Dtype, LoadOptions};
use crate::weights::safetensors as files;
use crate::weights::tensor::Segment;

const HEAD_DIM: usize = 20;
const TOKENS: usize = 150;

fn rope(rotary_dim: usize, base: f32, pairing: RopePairing) -> Rope {
    Rope { pairing, ..Rope::new(rotary_dim, base) }
}

/// The configuration of a small Llama with three layers.
fn plain() -> ModelConfig {
    let sizes = ModelSizes {
        vocab_size: 37,
        dim: 48,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: HEAD_DIM,
        hidden_dim: 56,
        max_context: 160,
    };
    let rope = rope(HEAD_DIM, 10_000.0, RopePairing::HalfSplit);
    ModelConfig::plain(sizes, NormKind::RmsNorm, 1e-5, Activation::SwiGlu, rope)
}

/// Random weights, by the engine's names of tensors.
#[derive(Default)]
struct Toy {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    random: u64,
}

impl Toy {
    fn new(c: &ModelConfig) -> Toy {
        let mut toy = Toy::default();
        for name in ["embed", "output"] {
            toy.tensor(name, &[c.vocab_size, c.dim], 0.0, 1.0);
        }
        let norms = if c.norm == NormKind::LayerNorm { 2 } else { 1 };
        toy.tensor("final_norm", &[norms, c.dim], 1.0, 0.3);
        for (l, layer) in c.layers.iter().enumerate() {
            let mut matrix = |part: &str, rows: usize, cols: usize| {
                toy.tensor(&format!("{l}.{part}"), &[rows, cols], 0.0, 1.7 / (cols as f32).sqrt());
                toy.tensor(&format!("{l}.{part}.bias"), &[rows], 0.0, 0.3);
            };
            matrix("qkv", c.qkv_dim(), c.dim);
            matrix("out", c.dim, c.n_heads * c.head_dim);
            matrix("up", c.up_dim(), c.dim);
            matrix("down", c.dim, c.hidden_dim);
            let mut norm = |part: &str, n: usize, dim: usize| {
                toy.tensor(&format!("{l}.{part}"), &[n, dim], 1.0, 0.3);
            };
            if layer.pre_norms {
                norm("attn_norm", norms, c.dim);
                norm("ffn_norm", norms, c.dim);
            }
            if let Some(kind) = layer.qk_norm {
                let heads = |n: usize| if kind == QkNorm::AllHeads { n * c.head_dim } else { c.head_dim };
                norm("q_norm", 1, heads(c.n_heads));
                norm("k_norm", 1, heads(c.n_kv_heads));
            }
            if layer.post_norms {
                norm("attn_post_norm", norms, c.dim);
                norm("ffn_post_norm", norms, c.dim);
            }
        }
        toy
    }

    /// Adds a tensor of values within `size` of `around`; `size` is the standard deviation times the square root of
    /// three. Tensors with the same name have the same values in every toy.
    fn tensor(&mut self, name: &str, shape: &[usize], around: f32, size: f32) {
        self.random = name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(131) + u64::from(byte));
        let value = |_| {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            around + ((self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
        };
        let values = (0..shape.iter().product::<usize>()).map(value).collect();
        self.tensors.insert(name.into(), (shape.to_vec(), values));
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    /// A norm's weight, and its bias if there is one.
    fn norm(&self, name: &str, eps: f32) -> NormSource {
        let (shape, values) = &self.tensors[name];
        let (weight, bias) = values.split_at(shape[1]);
        NormSource { weight: weight.into(), bias: (shape[0] == 2).then(|| bias.into()), eps }
    }

    /// The weights as backend `B` holds them.
    fn load<B: Backend>(&self, ops: &mut B, c: &ModelConfig) -> Weights<B> {
        let folder = tempfile::tempdir().unwrap();
        let bytes: HashMap<_, Vec<u8>> = self
            .tensors
            .iter()
            .map(|(name, (_, x))| (name, x.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let view = |(name, (shape, _)): (_, &(Vec<usize>, _))| {
            (name, TensorView::new(Stored::F32, shape.clone(), &bytes[name]).unwrap())
        };
        let file = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(self.tensors.iter().map(view), None, &file).unwrap();
        let stored = files::open(folder.path()).unwrap();
        let linear = |ops: &mut B, name: &str| {
            let tensor = stored.get(name).unwrap().clone();
            let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
            let kind = match name {
                "embed" | "output" => PartKind::Table,
                _ if name.ends_with("up") && c.activation.is_gated() => PartKind::Gated,
                _ => PartKind::Matrix,
            };
            let bias = self.tensors.get(&format!("{name}.bias")).map(|(_, bias)| bias.clone());
            let matrix = MatrixSource::Stored(vec![Segment { tensor, first_row: 0, n_rows: rows }]);
            ops.load_linear(LinearSource { name: name.into(), kind, rows, cols, matrix, bias }).unwrap()
        };
        let norm = |ops: &mut B, name: &str| ops.load_norm(self.norm(name, c.norm_eps)).unwrap();
        let layer = |ops: &mut B, l: usize, config: LayerConfig| {
            let name = |part: &str| format!("{l}.{part}");
            let pre = |ops: &mut B, part: &str| config.pre_norms.then(|| norm(ops, &name(part)));
            let post = |ops: &mut B, part: &str| config.post_norms.then(|| norm(ops, &name(part)));
            Layer {
                config,
                attn_norm: pre(ops, "attn_norm"),
                qkv: linear(ops, &name("qkv")),
                qk_norm: config.qk_norm.map(|_| ["q_norm", "k_norm"].map(|part| norm(ops, &name(part)))),
                out: linear(ops, &name("out")),
                attn_post_norm: post(ops, "attn_post_norm"),
                ffn_norm: pre(ops, "ffn_norm"),
                up: linear(ops, &name("up")),
                down: linear(ops, &name("down")),
                ffn_post_norm: post(ops, "ffn_post_norm"),
            }
        };
        Weights {
            embed: linear(ops, "embed"),
            layers: c.layers.iter().enumerate().map(|(l, &config)| layer(ops, l, config)).collect(),
            final_norm: ops.load_norm(self.norm("final_norm", c.norm_eps).times(c.logit_scale)).unwrap(),
            output: Some(linear(ops, "output")),
            activation: c.activation,
            parallel_residual: c.parallel_residual,
            embed_scale: c.embed_scale,
            logit_soft_cap: c.logit_soft_cap,
        }
    }

    /// `x W^T + b`.
    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let bias = self.tensors.get(&format!("{name}.bias")).map(|(_, bias)| bias);
        let row = |(r, w): (usize, &[f32])| {
            let start = bias.map_or(0.0, |bias| f64::from(bias[r]));
            w.iter().zip(x).fold(start, |sum, (&w, x)| sum + f64::from(w) * x)
        };
        self.get(name).chunks(x.len()).enumerate().map(row).collect()
    }

    fn normed(&self, name: &str, c: &ModelConfig, x: &[f64]) -> Vec<f64> {
        let NormSource { weight, bias, .. } = self.norm(name, 0.0);
        let n = x.len() as f64;
        let mean = if bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let bias = bias.unwrap_or(vec![0.0; x.len()]);
        let value = |((x, &w), &b): ((&f64, &f32), &f32)| {
            (x - mean) / (var + f64::from(c.norm_eps)).sqrt() * f64::from(w) + f64::from(b)
        };
        x.iter().zip(&weight).zip(&bias).map(value).collect()
    }

    /// The input of half a layer: `x`, normalised if the layer has a norm before it.
    fn pre_normed(&self, l: usize, norm: &str, c: &ModelConfig, x: &[f64]) -> Vec<f64> {
        if c.layers[l].pre_norms { self.normed(&format!("{l}.{norm}"), c, x) } else { x.to_vec() }
    }

    /// The logits of all positions by the formula, one position after the other.
    fn want(&self, c: &ModelConfig, ids: &[u32]) -> Vec<f64> {
        let embedded = |&id: &u32| {
            let row = &self.get("embed")[id as usize * c.dim..][..c.dim];
            row.iter().map(|&x| f64::from(x) * f64::from(c.embed_scale)).collect::<Vec<_>>()
        };
        let mut x: Vec<Vec<f64>> = ids.iter().map(embedded).collect();
        for (l, layer) in c.layers.iter().enumerate() {
            let name = |part: &str| format!("{l}.{part}");
            let half = |x: Vec<f64>, norm: &str| match layer.post_norms {
                true => self.normed(&name(norm), c, &x),
                false => x,
            };
            let attended = self.attended(c, l, &x);
            for (x, attended) in x.iter_mut().zip(attended) {
                let before = x.clone();
                let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                add(x, half(self.product(&name("out"), &attended), "attn_post_norm"));
                let read = if c.parallel_residual { &before } else { &*x };
                let gates = self.product(&name("up"), &self.pre_normed(l, "ffn_norm", c, read));
                let y = half(self.product(&name("down"), &activated(c, &gates)), "ffn_post_norm");
                add(x, y);
            }
        }
        let scale = f64::from(c.logit_scale);
        let cap = |y: f64| c.logit_soft_cap.map_or(y, |cap| f64::from(cap) * (y / f64::from(cap)).tanh());
        let logits = |x: &Vec<f64>| self.product("output", &self.normed("final_norm", c, x));
        x.iter().flat_map(logits).map(|y| cap(y * scale)).collect()
    }

    /// The output of a layer's attention at each position, before the output matrix.
    fn attended(&self, c: &ModelConfig, l: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (layer, d) = (&c.layers[l], c.head_dim);
        let normed_if = |kind: QkNorm, norm: &str, values: Vec<f64>| match layer.qk_norm {
            Some(of) if of == kind => self.normed(&format!("{l}.{norm}"), c, &values),
            _ => values,
        };
        let turned = |pos: usize, norm: &str, head: &[f64]| {
            let mut head = normed_if(QkNorm::Head, norm, head.to_vec());
            for (rope, i) in layer.rope.iter().flat_map(|&rope| {
                let rope = &c.ropes[rope];
                (0..rope.rotary_dim / 2).map(move |i| (rope, i))
            }) {
                let n = rope.rotary_dim / 2;
                let angle = pos as f64 * f64::from(rope.base).powf(-(i as f64) / n as f64);
                let (a, b) = match rope.pairing {
                    RopePairing::HalfSplit => (i, i + n),
                    RopePairing::Interleaved => (2 * i, 2 * i + 1),
                };
                let (sin, cos) = angle.sin_cos();
                let factor = f64::from(rope.attention_factor);
                let (cos, sin) = (cos * factor, sin * factor);
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
            normed_if(QkNorm::TurnedHead, norm, head)
        };
        let (q_end, k_end) = (c.n_heads * d, (c.n_heads + c.n_kv_heads) * d);
        let rows: Vec<Vec<Vec<f64>>> = x
            .iter()
            .enumerate()
            .map(|(pos, x)| {
                let qkv = self.product(&format!("{l}.qkv"), &self.pre_normed(l, "attn_norm", c, x));
                let q = normed_if(QkNorm::AllHeads, "q_norm", qkv[..q_end].to_vec());
                let k = normed_if(QkNorm::AllHeads, "k_norm", qkv[q_end..k_end].to_vec());
                let qkv = [&q[..], &k, &qkv[k_end..]].concat();
                let head = |(h, head): (usize, &[f64])| match h {
                    h if h < c.n_heads => turned(pos, "q_norm", head),
                    h if h < c.n_heads + c.n_kv_heads => turned(pos, "k_norm", head),
                    _ => head.to_vec(),
                };
                qkv.chunks(d).enumerate().map(head).collect()
            })
            .collect();
        let head = |pos: usize, h: usize| {
            let k = c.n_heads + h / (c.n_heads / c.n_kv_heads);
            let first = layer.window.map_or(0, |window| (pos + 1).saturating_sub(window));
            let score = |j: usize| {
                let s: f64 = rows[pos][h].iter().zip(&rows[j][k]).map(|(q, k)| q * k).sum();
                let grown = layer.query_scale.map_or(1.0, |QueryScale { beta, length }| {
                    1.0 + f64::from(beta) * ((1 + pos / length) as f64).ln()
                });
                let s = s * f64::from(layer.scale) * grown;
                layer.soft_cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh()).exp()
            };
            let p: Vec<f64> = (first..=pos).map(score).collect();
            let total: f64 = p.iter().sum();
            let value = |i: usize| -> f64 {
                (first..=pos).zip(&p).map(|(j, p)| p * rows[j][k + c.n_kv_heads][i]).sum()
            };
            (0..d).map(|i| value(i) / total).collect::<Vec<_>>()
        };
        (0..x.len()).map(|pos| (0..c.n_heads).flat_map(|h| head(pos, h)).collect()).collect()
    }

    /// The same logits by a backend. `steps` has the number of tokens of each step; together they are the prompt.
    fn got<B: Backend>(&self, ops: &mut B, c: &ModelConfig, ids: &[u32], steps: &[usize]) -> Vec<f32> {
        let weights = self.load(ops, c);
        let mut kv = KvCache::new(c.n_layers, || ops.kv_layer(LIMITS.n_blocks)).unwrap();
        let mut scratch = Scratch::new(ops, c, LIMITS).unwrap();
        let table: Vec<u32> = (0..LIMITS.n_blocks as u32).rev().collect();
        let (mut first, mut all, mut batch) = (0, Vec::new(), Batch::default());
        for &n in steps {
            batch.clear();
            batch.push_prompt(&ids[first..first + n], first, &table);
            (0..n as u32).for_each(|row| batch.want(row));
            forward(ops, &weights, &mut kv, &mut scratch, &batch).unwrap();
            for start in (0..n).step_by(LIMITS.max_logit_rows) {
                let some = start..n.min(start + LIMITS.max_logit_rows);
                let logits = logits(ops, &weights, &mut scratch, some).unwrap();
                all.extend_from_slice(ops.read(logits).unwrap());
            }
            first += n;
        }
        all
    }
}

const LIMITS: Limits = Limits {
    chunk_tokens: TOKENS,
    max_rows: TOKENS,
    max_logit_rows: 64,
    max_context: 160,
    rope_context: 160,
    n_blocks: 10,
};

fn activated(c: &ModelConfig, gates: &[f64]) -> Vec<f64> {
    let gelu_tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let up = |i: usize| gates[c.hidden_dim + i];
    let value = |i: usize| match (c.activation, gates[i]) {
        (Activation::Gelu, x) => 0.5 * x * libm::erfc(-x / 2f64.sqrt()),
        (Activation::GeluTanh, x) => gelu_tanh(x),
        (Activation::SwiGlu, x) => x / (1.0 + (-x).exp()) * up(i),
        (Activation::GeGlu, x) => gelu_tanh(x) * up(i),
    };
    (0..c.hidden_dim).map(value).collect()
}

/// Relative distance in the L2 norm.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (difference / want.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

type Change = fn(&mut ModelConfig);

/// Changes of one field each, and of several.
const CHANGES: [(&str, Change); 22] = [
    ("window", |c| c.layers[1].window = Some(20)),
    ("a window longer than a piece", |c| c.layers[0].window = Some(131)),
    ("scale", |c| c.layers[2].scale *= 3.0),
    ("query scale", |c| c.layers[1].query_scale = Some(QueryScale { beta: 0.4, length: 30 })),
    ("query scale and a norm of turned heads", |c| {
        c.layers[0].qk_norm = Some(QkNorm::TurnedHead);
        c.layers[0].query_scale = Some(QueryScale { beta: 0.4, length: 7 });
    }),
    ("soft cap", |c| c.layers[0].soft_cap = Some(0.5)),
    ("a second rotary embedding", |c| {
        c.ropes.push(rope(12, 100.0, RopePairing::Interleaved));
        c.layers[1].rope = Some(1);
    }),
    ("no rotary embedding", |c| c.layers[1].rope = None),
    ("norms of heads", |c| c.layers[0].qk_norm = Some(QkNorm::Head)),
    ("norms of turned heads", |c| c.layers[0].qk_norm = Some(QkNorm::TurnedHead)),
    ("norms of all heads", |c| c.layers[0].qk_norm = Some(QkNorm::AllHeads)),
    ("norms after each half only", |c| {
        c.layers.iter_mut().for_each(|layer| (layer.pre_norms, layer.post_norms) = (false, true));
    }),
    ("norms after each half", |c| c.layers.iter_mut().for_each(|layer| layer.post_norms = true)),
    ("gated gelu", |c| c.activation = Activation::GeGlu),
    ("gelu", |c| c.activation = Activation::Gelu),
    ("scale of the embedding", |c| c.embed_scale = 0.25),
    ("scale and soft cap of logits", |c| (c.logit_scale, c.logit_soft_cap) = (0.125, Some(2.0))),
    ("attention factor of a rotary embedding", |c| {
        c.ropes[0] = Rope { attention_factor: 1.5, ..rope(12, 10_000.0, RopePairing::Interleaved) };
    }),
    ("soft cap of logits", |c| c.logit_soft_cap = Some(2.0)),
    ("layernorm, parallel", |c| (c.norm, c.parallel_residual) = (NormKind::LayerNorm, true)),
    ("parallel layernorms, windows, norms after", |c| {
        (c.norm, c.parallel_residual) = (NormKind::LayerNorm, true);
        for layer in &mut c.layers {
            (layer.post_norms, layer.window) = (true, Some(33));
        }
    }),
    ("all, as in Gemma", |c| {
        (c.activation, c.embed_scale, c.logit_soft_cap) = (Activation::GeGlu, 48f32.sqrt(), Some(3.0));
        c.ropes.push(rope(HEAD_DIM, 500.0, RopePairing::HalfSplit));
        for (l, layer) in c.layers.iter_mut().enumerate() {
            (layer.qk_norm, layer.post_norms, layer.soft_cap) = (Some(QkNorm::Head), true, Some(2.0));
            layer.scale = 0.3;
            if l < 2 {
                (layer.window, layer.rope) = (Some(17), Some(1));
            }
        }
    }),
];

fn cpu(config: &ModelConfig) -> Cpu {
    let options = LoadOptions {
        threads: Some(2),
        dtype: Dtype::F32,
        cache_dtype: CacheDtype::F32,
        ..LoadOptions::default()
    };
    Cpu::new(config, &options, LIMITS).unwrap()
}

#[test]
fn every_field_is_its_formula() {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| (i * i + 5 * i) % 37).collect();
    let without = Toy::new(&plain()).want(&plain(), &ids);
    for (name, change) in CHANGES {
        let mut config = plain();
        change(&mut config);
        config.validate().unwrap();
        let toy = Toy::new(&config);
        let want = toy.want(&config, &ids);
        let got = toy.got(&mut cpu(&config), &config, &ids, &[TOKENS]);
        let error = distance(&got, &want);
        assert!(error < 2e-5, "{name}: {error}");
        // A field that is ignored would make no difference.
        assert!(distance(&got, &without) > 1e-3, "{name} has no effect");
        // The bits are the same if the prompt is computed in pieces, or token by token.
        let pieces = toy.got(&mut cpu(&config), &config, &ids, &[1, 16, 3, 64, 45, 20, 1]);
        assert!(pieces == got, "{name}: in pieces");
        let single = toy.got(&mut cpu(&config), &config, &ids, &[1; TOKENS]);
        assert!(single == got, "{name}: token by token");
    }
    let got = Toy::new(&plain()).got(&mut cpu(&plain()), &plain(), &ids, &[TOKENS]);
    let error = distance(&got, &without);
    assert!(error < 2e-5, "plain: {error}");
}
