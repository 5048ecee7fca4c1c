//! Damages files of models where they have structure: a setting, a length, a shape, a type. A flipped bit seldom gets
//! past the first check; a file whose parts are all well formed, and one of them wrong, does.
//!
//! Damage is drawn from a seed, so that a copy can be made again.

mod gguf;
mod json;
mod protobuf;

use super::Target;
use super::files::{Folder, byte_level, fixtures, join, names, parts, repository, try_model};

/// A kind of file, and what makes a damaged copy and uses it.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Uses the damaged copy of this seed; panics at a finding.
    pub run: fn(u64),
}

/// All kinds.
pub const KINDS: &[Kind] = &[
    Kind { name: "gguf", run: |seed| gguf_file(&mut Random(seed)) },
    Kind { name: "folder", run: |seed| folder(&mut Random(seed)) },
    Kind { name: "tokenizer", run: |seed| tokenizer(&mut Random(seed)) },
    Kind { name: "pieces", run: |seed| pieces(&mut Random(seed)) },
    Kind { name: "int8", run: |seed| int8(&mut Random(seed)) },
];

/// GGUF files of all families, and one of all block formats.
fn gguf_file(random: &mut Random) {
    let names = fixtures("model.gguf");
    let at = random.below(names.len() + 4);
    let mut file = match names.get(at) {
        Some(name) => repository(&format!("tests/fixtures/{name}/model.gguf")),
        None => gguf::of_every_format(&repository("tests/fixtures/gguf_llama_q8_0/model.gguf"), random),
    };
    // One in nine is not damaged: then a model with any weights is used.
    if !random.one_in(9) {
        file = random.cut_or(&file, gguf::damage);
    }
    super::gguf::run(&[&[1], &file[..]].concat());
}

/// Folders of all families: settings, weights and lists of weights.
fn folder(random: &mut Random) {
    // The int8 model with a real tokenizer is one of eight.
    let folder = match random.below(8) {
        0 => "examples/welm-nano".to_string(),
        _ => format!("tests/fixtures/{}", random.pick(&fixtures("config.json"))),
    };
    let mut files: Vec<(String, Vec<u8>)> = names(&folder)
        .into_iter()
        .filter(|file| file.ends_with(".json") || file.ends_with(".safetensors"))
        .filter(|file| file != "expected.safetensors" && file != "config_v4.json")
        .map(|file| (file.clone(), repository(&format!("{folder}/{file}"))))
        .collect();
    let at = random.below(files.len());
    let (file, bytes) = &mut files[at];
    let damage = if file.ends_with(".json") { json::damage } else { json::damage_safetensors };
    *bytes = random.cut_or(bytes, damage);
    if random.one_in(2) && !files.iter().any(|(file, _)| file == "tokenizer.json") {
        files.push(("tokenizer.json".into(), byte_level().to_string().into_bytes()));
    }
    let files: Vec<_> = files.iter().map(|(file, bytes)| (file.as_str(), &bytes[..])).collect();
    try_model(Folder::with(&files).path(), "ab <s> 1");
}

/// `tokenizer.json` of every kind.
fn tokenizer(random: &mut Random) {
    let seed = random.pick(&super::tokenizer::seeds());
    let [tokenizer, text] = parts(&seed);
    super::tokenizer::run(&join(&[&random.cut_or(tokenizer, json::damage), text]));
}

/// SentencePiece's `tokenizer.model`.
fn pieces(random: &mut Random) {
    let seed = random.pick(&super::pieces::seeds());
    super::pieces::run(&random.cut_or(&seed, protobuf::damage));
}

/// What `quantize` writes: settings, or the header of the tensors.
fn int8(random: &mut Random) {
    let seeds = super::int8::seeds();
    let [config, header] = parts(&seeds[0]);
    let input = if random.one_in(2) {
        join(&[&random.cut_or(config, json::damage), b""])
    } else {
        join(&[b"", &random.cut_or(header, json::damage)])
    };
    super::int8::run(&input);
}

/// A small random generator (SplitMix64).
pub struct Random(pub u64);

/// Integers at which something often changes.
const EDGES: [u64; 30] = [
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    16,
    31,
    32,
    33,
    64,
    127,
    128,
    255,
    256,
    1_000,
    32_767,
    65_535,
    65_536,
    1 << 20,
    (1 << 24) + 1,
    i32::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];

/// The same for floats.
const FLOATS: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-5,
    1e-45,
    1e-320,
    1e4,
    1e30,
    f32::MAX as f64,
    -f32::MAX as f64,
    1e308,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// How many parts of a copy are damaged: one of most, because the first error hides the others.
    fn few(&mut self) -> usize {
        if self.one_in(4) { 2 + self.below(2) } else { 1 }
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// An integer at an edge, or near the one that was there.
    fn integer(&mut self, was: u64) -> u64 {
        match self.below(8) {
            0 => was.wrapping_add(1),
            1 => was.wrapping_sub(1),
            2 => was.wrapping_mul(2),
            3 => was / 2,
            4 => self.next() >> self.below(64),
            _ => self.pick(&EDGES),
        }
    }

    fn float(&mut self) -> f64 {
        if self.one_in(4) { self.integer(1) as f64 } else { self.pick(&FLOATS) }
    }

    /// Bytes in the place of a text.
    fn text(&mut self, was: &[u8]) -> Vec<u8> {
        let n = self.below(40);
        match self.below(8) {
            0 => Vec::new(),
            1 => self.bytes(n),
            2 => was.repeat(2 + n),
            3 => vec![b'a'; 1 << self.below(17)],
            4 => [was, b"\0"].concat(),
            5 => was[..self.below(was.len() + 1)].to_vec(),
            6 => "é中👍\u{301}\u{200D} \n\u{FEFF}".repeat(1 + n).into_bytes(),
            _ => self
                .pick(&["llama", "qwen2", "gemma3", "phi3", "none", "gpt2", "t5", "<s>", "{{", "-1"])
                .as_bytes()
                .to_vec(),
        }
    }

    /// Cuts or flips bytes of one copy in eight, and hands the others to `damage`.
    fn cut_or(&mut self, bytes: &[u8], damage: fn(&[u8], &mut Random) -> Vec<u8>) -> Vec<u8> {
        let mut copy = bytes.to_vec();
        match self.below(16) {
            0 => {
                copy.truncate(self.below(bytes.len()));
                copy
            }
            1 => {
                // Half of them in the first kilobytes, where headers are.
                let within = if self.one_in(2) { bytes.len() } else { bytes.len().min(4_096) };
                for _ in 0..1 + self.below(3) {
                    let at = self.below(within);
                    copy[at] ^= 1 << self.below(8);
                }
                copy
            }
            _ => damage(bytes, self),
        }
    }
}

/// Runs a target with one of its `seeds`, cut at a place of `places`: one of the first bytes, or any up to the last.
pub fn cut(target: &Target, seeds: &[Vec<u8>], place: usize, places: usize) {
    let seed = &seeds[place % seeds.len()];
    let at = if place < places / 4 { place / seeds.len() } else { seed.len() * place / places };
    (target.run)(&seed[..at.min(seed.len())]);
}
