//! GGUF: keys with values, descriptions of tensors, data.

use super::Random;

/// Types of values: bytes of a number, or one of these two.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn size(kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

/// Types of blocks that are computed, with their bytes and columns.
const FORMATS: [(u32, usize, usize); 18] = [
    (0, 4, 1),      // F32
    (1, 2, 1),      // F16
    (2, 18, 32),    // Q4_0
    (3, 20, 32),    // Q4_1
    (6, 22, 32),    // Q5_0
    (7, 24, 32),    // Q5_1
    (8, 34, 32),    // Q8_0
    (10, 84, 256),  // Q2_K
    (11, 110, 256), // Q3_K
    (12, 144, 256), // Q4_K
    (13, 176, 256), // Q5_K
    (14, 210, 256), // Q6_K
    (20, 18, 32),   // IQ4_NL
    (23, 136, 256), // IQ4_XS
    (30, 2, 1),     // BF16
    (39, 17, 32),   // MXFP4
    (15, 292, 256), // Q8_K, which no file has
    (16, 66, 256),  // IQ2_XXS, which is refused
];

#[derive(Clone)]
enum Value {
    Number(u32, Vec<u8>),
    Text(Vec<u8>),
    Array(u32, Vec<Value>),
}

impl Value {
    fn kind(&self) -> u32 {
        match self {
            Value::Number(kind, _) => *kind,
            Value::Text(_) => TEXT,
            Value::Array(..) => ARRAY,
        }
    }

    fn damage(&mut self, random: &mut Random) {
        if random.one_in(12) {
            *self = match random.below(4) {
                0 => Value::Number(4, random.integer(0).to_le_bytes()[..4].to_vec()),
                1 => Value::Text(random.text(b"1")),
                2 => Value::Array(ARRAY, vec![self.clone(); 3]),
                _ => Value::Array(self.kind(), vec![self.clone()]),
            };
            return;
        }
        match self {
            Value::Number(kind, bytes) => {
                if random.one_in(8) {
                    *kind = random.below(14) as u32;
                    bytes.resize(size(*kind), 0);
                    return;
                }
                let mut was = [0; 8];
                was[..bytes.len()].copy_from_slice(bytes);
                *bytes = match *kind {
                    6 => (random.float() as f32).to_le_bytes().to_vec(),
                    12 => random.float().to_le_bytes().to_vec(),
                    _ => random.integer(u64::from_le_bytes(was)).to_le_bytes()[..bytes.len()].to_vec(),
                };
            }
            Value::Text(text) => *text = random.text(text),
            Value::Array(kind, values) => match random.below(6) {
                0 => values.truncate(random.below(values.len() + 1)),
                1 => values.extend(values.clone()),
                2 => *kind = random.below(14) as u32,
                3 if values.len() > 1 => {
                    let (a, b) = (random.below(values.len()), random.below(values.len()));
                    values[a] = values[b].clone();
                }
                _ if !values.is_empty() => {
                    let at = random.below(values.len());
                    values[at].damage(random);
                }
                _ => {}
            },
        }
    }
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

struct File {
    version: u32,
    keys: Vec<(Vec<u8>, Value)>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
}

/// Reads a sound file.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head.to_vec()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(*self.bytes(4).first_chunk().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(*self.bytes(8).first_chunk().expect("eight bytes"))
    }

    fn text(&mut self) -> Vec<u8> {
        let n = self.u64() as usize;
        self.bytes(n)
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            TEXT => Value::Text(self.text()),
            ARRAY => {
                let (kind, n) = (self.u32(), self.u64());
                Value::Array(kind, (0..n).map(|_| self.value(kind)).collect())
            }
            _ => Value::Number(kind, self.bytes(size(kind))),
        }
    }
}

impl File {
    fn read(bytes: &[u8]) -> File {
        let mut from = Reader(&bytes[4..]);
        let version = from.u32();
        let (n_tensors, n_keys) = (from.u64(), from.u64());
        let keys = (0..n_keys).map(|_| {
            let (key, kind) = (from.text(), from.u32());
            (key, from.value(kind))
        });
        let keys = keys.collect();
        let tensors = (0..n_tensors).map(|_| {
            let (name, n) = (from.text(), from.u32());
            let dims = (0..n).map(|_| from.u64()).collect();
            Tensor { name, dims, kind: from.u32(), offset: from.u64() }
        });
        let tensors = tensors.collect();
        let begin = (bytes.len() - from.0.len()).next_multiple_of(32);
        File { version, keys, tensors, data: bytes[begin.min(bytes.len())..].to_vec() }
    }

    /// The file, and where it has numbers that say how much of something comes after.
    fn write(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = Writer { file: b"GGUF".to_vec(), lengths: Vec::new() };
        out.put(&self.version.to_le_bytes());
        out.length(self.tensors.len());
        out.length(self.keys.len());
        for (key, value) in &self.keys {
            out.text(key);
            out.put(&value.kind().to_le_bytes());
            out.value(value);
        }
        for tensor in &self.tensors {
            out.text(&tensor.name);
            out.put(&(tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.put(&dim.to_le_bytes()));
            out.put(&tensor.kind.to_le_bytes());
            out.put(&tensor.offset.to_le_bytes());
        }
        let mut file = out.file;
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        (file, out.lengths)
    }
}

struct Writer {
    file: Vec<u8>,
    lengths: Vec<usize>,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.file.extend(bytes);
    }

    fn length(&mut self, n: usize) {
        self.lengths.push(self.file.len());
        self.put(&(n as u64).to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.length(text.len());
        self.put(text);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Number(_, bytes) => self.put(bytes),
            Value::Text(text) => self.text(text),
            Value::Array(kind, values) => {
                self.put(&kind.to_le_bytes());
                self.length(values.len());
                values.iter().for_each(|value| self.value(value));
            }
        }
    }
}

/// A copy with one to three parts that are wrong.
pub(super) fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = File::read(bytes);
    for _ in 0..random.few() {
        match random.below(16) {
            0..6 => damage_key(&mut file, random),
            6..14 => damage_tensor(&mut file, random),
            14 => {
                // Bytes of weights and scales: all ones are not a number in most formats.
                let (at, byte) =
                    (random.below(file.data.len().max(1)), random.pick(&[0u8, 0xFF, 0x7F, 0x80]));
                let end = (at + random.below(4_096)).min(file.data.len());
                file.data[at.min(end)..end].fill(byte);
            }
            _ => file.version = random.integer(3) as u32,
        }
    }
    let (mut bytes, lengths) = file.write();
    if random.one_in(12) {
        let at = random.pick(&lengths);
        let was = u64::from_le_bytes(*bytes[at..].first_chunk().expect("eight bytes"));
        bytes[at..at + 8].copy_from_slice(&random.integer(was).to_le_bytes());
    }
    bytes
}

fn damage_key(file: &mut File, random: &mut Random) {
    if file.keys.is_empty() {
        return;
    }
    let (at, other) = (random.below(file.keys.len()), random.below(file.keys.len()));
    match random.below(10) {
        0 => drop(file.keys.remove(at)),
        1 => file.keys.push(file.keys[at].clone()),
        2 => file.keys[at].0 = file.keys[other].0.clone(),
        3 => file.keys[at].1 = file.keys[other].1.clone(),
        4 => {
            // A setting that another family has.
            let known = [
                "rope.scaling.type",
                "expert_count",
                "attention.sliding_window",
                "attention.key_length",
                "rope.dimension_count",
                "attention.layer_norm_rms_epsilon",
                "logit_scale",
                "block_count",
                "vocab_size",
            ];
            let family = file.keys.iter().find_map(|(key, value)| match value {
                Value::Text(text) if key == b"general.architecture" => Some(text.clone()),
                _ => None,
            });
            let key = [&family.unwrap_or_default()[..], b".", random.pick(&known).as_bytes()].concat();
            let mut value = Value::Number(4, vec![1, 0, 0, 0]);
            value.damage(random);
            file.keys.push((key, value));
        }
        5 => {
            let bytes = random.integer(32).to_le_bytes()[..4].to_vec();
            file.keys.push((b"general.alignment".to_vec(), Value::Number(4, bytes)));
        }
        _ => file.keys[at].1.damage(random),
    }
}

fn damage_tensor(file: &mut File, random: &mut Random) {
    if file.tensors.is_empty() {
        return;
    }
    let (at, other) = (random.below(file.tensors.len()), random.below(file.tensors.len()));
    let copied = file.tensors[other].clone();
    let n = file.tensors.len();
    let tensor = &mut file.tensors[at];
    match random.below(10) {
        0 => drop(file.tensors.remove(at)),
        1 => file.tensors.push(copied),
        2 => tensor.name = copied.name,
        3 => {
            tensor.offset = match random.below(3) {
                0 => copied.offset,
                1 => random.integer(tensor.offset),
                _ => tensor.offset.wrapping_add(32 * random.below(64) as u64),
            }
        }
        4 if !tensor.dims.is_empty() => {
            let at = random.below(tensor.dims.len());
            tensor.dims[at] = random.integer(tensor.dims[at]);
        }
        5 => match random.below(3) {
            0 => tensor.dims.reverse(),
            1 => tensor.dims.push(random.integer(1)),
            _ => drop(tensor.dims.pop()),
        },
        6 => tensor.kind = random.integer(u64::from(tensor.kind)) as u32,
        7 => tensor.name = random.text(&tensor.name),
        _ => {
            // Another format, with as many bytes as it takes.
            let (kind, bytes, columns) = random.pick(&FORMATS);
            let n_values = tensor.dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim)).unwrap_or(0);
            if n_values < 1 << 20 {
                (tensor.kind, tensor.offset) = (kind, file.data.len().next_multiple_of(32) as u64);
                fill(&mut file.data, (n_values as usize).div_ceil(columns) * bytes, random);
            }
        }
    }
    debug_assert!(file.tensors.len().abs_diff(n) <= 1);
}

/// Appends random bytes at a multiple of 32: of any value, or so that few scales are large or not a number.
fn fill(data: &mut Vec<u8>, n: usize, random: &mut Random) {
    let mask = random.pick(&[0xFFu8, 0x3F, 0x1B]);
    data.resize(data.len().next_multiple_of(32), 0);
    data.extend(random.bytes(n).into_iter().map(|byte| byte & mask));
}

/// A Llama of one layer with 256 columns, each of whose matrices has a format drawn from all, and random weights. The
/// tokenizer is that of `sound`.
pub(super) fn of_every_format(sound: &[u8], random: &mut Random) -> Vec<u8> {
    const DIM: u64 = 256;
    let mut file = File::read(sound);
    let mut set = |key: &str, value: u32| {
        let place = file.keys.iter_mut().find(|(k, _)| k == key.as_bytes());
        let value = Value::Number(4, value.to_le_bytes().to_vec());
        match place {
            Some((_, old)) => *old = value,
            None => file.keys.push((key.into(), value)),
        }
    };
    set("llama.block_count", 1);
    set("llama.embedding_length", DIM as u32);
    set("llama.feed_forward_length", DIM as u32);
    set("llama.attention.head_count", 4);
    set("llama.attention.head_count_kv", 2);
    set("llama.rope.dimension_count", 64);
    set("llama.attention.key_length", 64);
    set("llama.attention.value_length", 64);
    let rows = file.tensors.iter().find(|t| t.name == b"token_embd.weight").expect("an embedding").dims[1];
    let norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"];
    let matrices = [
        ("token_embd", rows),
        ("output", rows),
        ("blk.0.attn_q", DIM),
        ("blk.0.attn_k", DIM / 2),
        ("blk.0.attn_v", DIM / 2),
        ("blk.0.attn_output", DIM),
        ("blk.0.ffn_gate", DIM),
        ("blk.0.ffn_up", DIM),
        ("blk.0.ffn_down", DIM),
    ];
    (file.tensors, file.data) = (Vec::new(), Vec::new());
    for name in norms {
        let offset = file.data.len().next_multiple_of(32) as u64;
        file.data.extend((0..DIM).flat_map(|i| (1.0 + i as f32 / 512.0).to_le_bytes()));
        file.tensors.push(Tensor { name: format!("{name}.weight").into(), dims: vec![DIM], kind: 0, offset });
    }
    for (name, rows) in matrices {
        let (kind, bytes, columns) = FORMATS[random.below(FORMATS.len() - 2)];
        let offset = file.data.len().next_multiple_of(32) as u64;
        fill(&mut file.data, (rows * DIM) as usize / columns * bytes, random);
        file.tensors.push(Tensor {
            name: format!("{name}.weight").into(),
            dims: vec![DIM, rows],
            kind,
            offset,
        });
    }
    file.write().0
}
