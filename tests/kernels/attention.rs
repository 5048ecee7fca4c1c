//! Tests attention against the formula in f64. Also tests that the bits of a row do not depend on the other rows.

use std::ops::Range;

use half::bf16;
use welm_kernels::attention::{
    Attention, BLOCK_KEYS, Span, attention_decode, attention_prefill, decode_scratch_len, prefill_tiles,
};
use welm_kernels::error::Error;
use welm_kernels::{Buffer, Device};

use crate::sums::within;

/// The value of output columns that no kernel may write.
const UNTOUCHED: u16 = 0x7fc1;
/// Lengths around the 16 keys of a block, the 64 of a prefill step and the 512 of a decode split.
const LENGTHS: [usize; 9] = [1, 15, 16, 17, 63, 64, 65, 200, 513];

/// Columns of a head; each has kernels of its own.
const HEAD_DIMS: [usize; 4] = [64, 80, 96, 128];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform with variance `deviation` squared.
    fn values(&mut self, len: usize, deviation: f32) -> Vec<bf16> {
        let uniform = |x: u64| (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..len).map(|_| bf16::from_f32(uniform(self.next()) * 3f32.sqrt() * deviation)).collect()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    head_dim: usize,
    n_heads: usize,
    n_kv_heads: usize,
    window: usize,
    /// Factor of the usual scale.
    factor: f32,
    soft_cap: Option<f32>,
}

const fn shape(head_dim: usize, n_heads: usize, n_kv_heads: usize, window: usize) -> Shape {
    Shape { head_dim, n_heads, n_kv_heads, window, factor: 1.0, soft_cap: None }
}

const fn capped(shape: Shape, factor: f32, cap: f32) -> Shape {
    Shape { factor, soft_cap: Some(cap), ..shape }
}

impl Shape {
    fn scale(&self) -> f32 {
        self.factor / (self.head_dim as f32).sqrt()
    }

    fn columns(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn qkv_stride(&self) -> usize {
        (self.columns() + 2 * self.n_kv_heads * self.head_dim).next_multiple_of(64)
    }

    fn out_stride(&self) -> usize {
        self.columns().next_multiple_of(64)
    }

    /// The first key that `pos` sees.
    fn first_key(&self, pos: usize) -> usize {
        if self.window == 0 { 0 } else { (pos + 1).saturating_sub(self.window) }
    }
}

/// The q, k and v of a text, by position.
struct Text {
    q: Vec<bf16>, // (len, n_heads, head_dim)
    k: Vec<bf16>, // (len, n_kv_heads, head_dim)
    v: Vec<bf16>, // (len, n_kv_heads, head_dim)
}

impl Text {
    /// Scores have about the deviation `logits`.
    fn new(shape: Shape, len: usize, logits: f32) -> Text {
        let mut rng = Rng(len as u64 * 1000 + shape.head_dim as u64);
        let kv = len * shape.n_kv_heads * shape.head_dim;
        let q = rng.values(len * shape.columns(), logits.sqrt());
        Text { q, k: rng.values(kv, logits.sqrt()), v: rng.values(kv, 1.0) }
    }

    /// The output of a row in f64, and the mean magnitude that rounding errors are relative to.
    fn expected(&self, shape: Shape, pos: usize) -> Vec<(f64, f64)> {
        let (dim, kv_heads) = (shape.head_dim, shape.n_kv_heads);
        let head = |h: usize| {
            let q = &self.q[(pos * shape.n_heads + h) * dim..][..dim];
            let at = |j: usize| (j * kv_heads + h / (shape.n_heads / kv_heads)) * dim;
            let keys: Vec<usize> = (shape.first_key(pos)..=pos).collect();
            let dot = |j: &usize| {
                let products = q.iter().zip(&self.k[at(*j)..]).map(|(q, k)| q.to_f64() * k.to_f64());
                let score = products.sum::<f64>() * f64::from(shape.scale());
                shape.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = keys.iter().map(dot).collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = p.iter().sum();
            let column = move |c: usize| {
                let terms = keys.iter().zip(&p).map(|(&j, p)| p * self.v[at(j) + c].to_f64() / sum);
                terms.fold((0.0, 0.0), |(x, size), term| (x + term, size + term.abs()))
            };
            (0..dim).map(column).collect::<Vec<_>>()
        };
        (0..shape.n_heads).flat_map(head).collect()
    }

    fn assert_close(&self, shape: Shape, pos: usize, got: &[u16], what: &str) {
        for (column, (&got, (want, size))) in got.iter().zip(self.expected(shape, pos)).enumerate() {
            let got = bf16::from_bits(got).to_f64();
            let close = within("attention", (got - want).abs(), 1e-2 * size);
            assert!(close, "{what}, {shape:?}, pos {pos}, column {column}: {got} for {want}");
        }
    }
}

/// A cache with the given positions of some texts, in blocks in random order. All else in it is NaN, and table entries
/// of blocks without such a position are outside of the cache.
struct Cache {
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    block_tables: Buffer<u32>,
    table_starts: Vec<u32>,
}

impl Cache {
    fn new(device: &Device, shape: Shape, texts: &[(&Text, Range<usize>)], seed: u64) -> Cache {
        let (dim, kv_heads) = (shape.head_dim, shape.n_kv_heads);
        let used = |held: &Range<usize>| held.start / BLOCK_KEYS..held.end.div_ceil(BLOCK_KEYS);
        let n_blocks = texts.iter().map(|(_, held)| used(held).len()).sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..n_blocks as u32).collect();
        Rng(seed).shuffle(&mut free);
        let mut k = vec![bf16::NAN; n_blocks * kv_heads * BLOCK_KEYS * dim];
        let mut v = k.clone();
        let (mut block_tables, mut table_starts) = (vec![u32::MAX; 3], vec![]);
        for (text, held) in texts {
            let start = block_tables.len();
            table_starts.push(start as u32);
            let entry = |i: usize| if used(held).contains(&i) { free.pop().unwrap() } else { u32::MAX };
            block_tables.extend((0..used(held).end + 1).map(entry));
            for key in held.clone() {
                let block = block_tables[start + key / BLOCK_KEYS] as usize;
                for head in 0..kv_heads {
                    let to = ((block * kv_heads + head) * BLOCK_KEYS + key % BLOCK_KEYS) * dim;
                    let from = (key * kv_heads + head) * dim;
                    k[to..to + dim].copy_from_slice(&text.k[from..from + dim]);
                    v[to..to + dim].copy_from_slice(&text.v[from..from + dim]);
                }
            }
        }
        let k = device.upload(&k).unwrap();
        let v = device.upload(&v).unwrap();
        Cache { k, v, block_tables: device.upload(&block_tables).unwrap(), table_starts }
    }

    fn attention<'a>(&'a self, shape: Shape, qkv: &'a Buffer<bf16>) -> Attention<'a> {
        Attention {
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            window: shape.window as u32,
            scale: shape.scale(),
            soft_cap: shape.soft_cap,
            qkv,
            qkv_stride: shape.qkv_stride(),
            k: &self.k,
            v: &self.v,
            block_tables: &self.block_tables,
            n_rows: qkv.len() / shape.qkv_stride(),
            out_stride: shape.out_stride(),
        }
    }
}

/// Rows of q with NaN for k and v; `None` is a row of NaN.
fn upload_qkv(device: &Device, shape: Shape, rows: &[Option<(&Text, usize)>]) -> Buffer<bf16> {
    let (stride, columns) = (shape.qkv_stride(), shape.columns());
    let mut qkv = vec![bf16::NAN; rows.len() * stride];
    for (to, row) in qkv.chunks_exact_mut(stride).zip(rows) {
        if let Some((text, pos)) = row {
            to[..columns].copy_from_slice(&text.q[pos * columns..][..columns]);
        }
    }
    device.upload(&qkv).unwrap()
}

/// The rows that were written, without their padding. Checks the padding, and that nothing else was written.
fn download_out(shape: Shape, out: &Buffer<bf16>, written: impl Fn(usize) -> bool) -> Vec<Vec<u16>> {
    let out: Vec<u16> = out.to_vec().unwrap().iter().map(|x| x.to_bits()).collect();
    let mut rows = vec![];
    for (i, row) in out.chunks_exact(shape.out_stride()).enumerate() {
        let (heads, padding) = row.split_at(shape.columns());
        if written(i) {
            assert!(padding.iter().all(|&x| x == 0), "{shape:?}, row {i}: padding");
            rows.push(heads.to_vec());
        } else {
            assert!(row.iter().all(|&x| x == UNTOUCHED), "{shape:?}, row {i} was written");
        }
    }
    rows
}

/// Prefill of some positions of some texts in one launch; the rows' bits.
fn run_prefill(device: &Device, shape: Shape, chunks: &[(&Text, Range<usize>)], seed: u64) -> Vec<Vec<u16>> {
    let held = |(text, rows): &(_, Range<usize>)| (*text, shape.first_key(rows.start)..rows.end);
    let cache = Cache::new(device, shape, &chunks.iter().map(held).collect::<Vec<_>>(), seed);
    let (mut spans, mut rows) = (vec![], vec![None]);
    for ((text, chunk), &table_start) in chunks.iter().zip(&cache.table_starts) {
        let (first_row, n_rows) = (rows.len() as u32, chunk.len() as u32);
        spans.push(Span { first_row, n_rows, first_pos: chunk.start as u32, table_start, reserved: 0 });
        rows.extend(chunk.clone().map(|pos| Some((*text, pos))));
        rows.push(None);
    }
    let qkv = upload_qkv(device, shape, &rows);
    let tiles = device.upload(&prefill_tiles(device, &spans)).unwrap();
    let spans = device.upload(&spans).unwrap();
    let mut out = device.upload(&vec![bf16::from_bits(UNTOUCHED); rows.len() * shape.out_stride()]).unwrap();
    let attention = cache.attention(shape, &qkv);
    attention_prefill(device, &attention, &spans, &tiles, tiles.len(), &mut out).unwrap();
    download_out(shape, &out, |i| rows[i].is_some())
}

/// Decode of one position each of some texts; the rows' bits.
fn run_decode(
    device: &Device,
    shape: Shape,
    rows: &[(&Text, usize)],
    max: usize,
    seed: u64,
) -> Vec<Vec<u16>> {
    let held = |&(text, pos): &(_, usize)| (text, shape.first_key(pos)..pos + 1);
    let cache = Cache::new(device, shape, &rows.iter().map(held).collect::<Vec<_>>(), seed);
    let qkv = upload_qkv(device, shape, &rows.iter().copied().map(Some).collect::<Vec<_>>());
    let positions = device.upload(&rows.iter().map(|row| row.1 as u32).collect::<Vec<_>>()).unwrap();
    let table_starts = device.upload(&cache.table_starts).unwrap();
    let scratch_len = decode_scratch_len(rows.len(), shape.n_heads, shape.head_dim, max);
    let mut scratch = device.upload(&vec![f32::NAN; scratch_len]).unwrap();
    let len = (rows.len() + 1) * shape.out_stride();
    let mut out = device.upload(&vec![bf16::from_bits(UNTOUCHED); len]).unwrap();
    let attention = cache.attention(shape, &qkv);
    // In two parts, the second one first, because rows must not depend on each other.
    for part in [rows.len() / 2..rows.len(), 0..rows.len() / 2] {
        attention_decode(device, &attention, part, &positions, &table_starts, max, &mut scratch, &mut out)
            .unwrap();
    }
    download_out(shape, &out, |i| i < rows.len())
}

/// [`attention_prefill`]: the formula, windows, chunks, neighbours.
pub(crate) fn prefill(device: &Device) {
    HEAD_DIMS.iter().for_each(|&head_dim| prefill_of(device, head_dim));
}

/// The same, of one head_dim.
pub(crate) fn prefill_of(device: &Device, head_dim: usize) {
    tiles(device);
    lengths_of(device, head_dim);
    prefill_capped_of(device, head_dim);
    match head_dim {
        64 => prefill_far(device),
        80 => prefill_windows(device),
        128 => prefill_large(device),
        _ => (),
    }
    chunks_of(device, head_dim);
}

/// All lengths in one launch, in all shapes.
pub(crate) fn prefill_lengths(device: &Device) {
    HEAD_DIMS.iter().for_each(|&head_dim| lengths_of(device, head_dim));
}

fn lengths_of(device: &Device, head_dim: usize) {
    let shapes = [shape(64, 2, 2, 0), shape(80, 3, 1, 0), shape(96, 4, 1, 0), shape(128, 8, 1, 0)];
    for shape in shapes.into_iter().filter(|shape| shape.head_dim == head_dim) {
        // The longest only for small heads, where it is fast.
        let lengths = &LENGTHS[..if head_dim < 96 { 9 } else { 8 }];
        let texts: Vec<Text> = lengths.iter().map(|&len| Text::new(shape, len, 1.0)).collect();
        let chunks: Vec<_> = texts.iter().zip(lengths).map(|(text, &len)| (text, 0..len)).collect();
        let got = run_prefill(device, shape, &chunks, 1);
        let mut got_rows = got.iter();
        for (text, rows) in &chunks {
            for pos in rows.clone() {
                text.assert_close(shape, pos, got_rows.next().unwrap(), "prefill");
            }
        }
        // Alone, in other blocks of the cache.
        let before: usize = lengths[..6].iter().sum();
        let alone = run_prefill(device, shape, &chunks[6..7], 2);
        assert_eq!(alone, got[before..before + lengths[6]], "{shape:?}: alone and in a batch");
    }
}

/// Windows around a block and a step.
pub(crate) fn prefill_windows(device: &Device) {
    for window in [1, 16, 50, 64, 129] {
        let shape = shape(80, 4, 2, window);
        let text = Text::new(shape, 200, 1.0);
        let whole = run_prefill(device, shape, &[(&text, 0..200)], 3);
        for (pos, row) in whole.iter().enumerate() {
            text.assert_close(shape, pos, row, "windowed prefill");
        }
        let rest = run_prefill(device, shape, &[(&text, 131..200)], 4);
        assert_eq!(rest, whole[131..], "{shape:?}: later chunk");
    }
}

/// Rows far from key 0.
pub(crate) fn prefill_far(device: &Device) {
    // More than the 32 steps of which a warp holds the table entries, and enough heads that a buffer freed too early
    // shows in some of them. With the window, the last of a warp's rows sees all of a step but its first key.
    for window in [0, 147] {
        let shape = shape(64, 8, 2, window);
        let text = Text::new(shape, 2100, 1.0);
        let got = run_prefill(device, shape, &[(&text, 2036..2100)], 9);
        for (row, pos) in got.iter().zip(2036..) {
            text.assert_close(shape, pos, row, "long prefill");
        }
        let alone = run_prefill(device, shape, &[(&text, 2067..2068)], 10);
        assert_eq!(alone[0], got[2067 - 2036], "{shape:?}: alone and beside others");
    }
}

/// Large scores, with which the softmax is nearly 0 for all but the largest.
pub(crate) fn prefill_large(device: &Device) {
    for logits in [100.0, 3000.0] {
        let shape = shape(128, 2, 1, 0);
        let text = Text::new(shape, 100, logits);
        let got = run_prefill(device, shape, &[(&text, 0..100)], 5);
        for (pos, row) in got.iter().enumerate() {
            text.assert_close(shape, pos, row, "large logits");
        }
    }
}

/// Scales and soft caps: scores far below the cap and far above, with a window and without.
const CAPPED: [Shape; 6] = [
    capped(shape(64, 2, 1, 0), 2.0, 1.5),
    capped(shape(64, 1, 1, 33), 30.0, 5.0),
    capped(shape(80, 2, 2, 40), 2.0, 1.0),
    capped(shape(96, 1, 1, 0), 0.5, 30.0),
    capped(shape(128, 2, 1, 70), 3.0, 2.0),
    Shape { factor: 0.25, ..shape(128, 1, 1, 0) },
];

fn prefill_capped_of(device: &Device, head_dim: usize) {
    for shape in CAPPED.into_iter().filter(|shape| shape.head_dim == head_dim) {
        let text = Text::new(shape, 150, 2.0);
        let whole = run_prefill(device, shape, &[(&text, 0..150)], 11);
        for (pos, row) in whole.iter().enumerate() {
            text.assert_close(shape, pos, row, "capped prefill");
        }
        let rest = run_prefill(device, shape, &[(&text, 97..150)], 12);
        assert_eq!(rest, whole[97..], "{shape:?}: later chunk");
    }
}

/// The same, of all heads.
pub(crate) fn prefill_capped(device: &Device) {
    HEAD_DIMS.iter().for_each(|&head_dim| prefill_capped_of(device, head_dim));
}

/// One row of a sequence at a time, with one split and with two.
pub(crate) fn decode_capped(device: &Device) {
    HEAD_DIMS.iter().for_each(|&head_dim| decode_capped_of(device, head_dim));
}

fn decode_capped_of(device: &Device, head_dim: usize) {
    for shape in CAPPED.into_iter().filter(|shape| shape.head_dim == head_dim) {
        let text = Text::new(shape, 600, 2.0);
        let rows = [0, 30, 511, 599].map(|pos| (&text, pos));
        let got = run_decode(device, shape, &rows, 600, 13);
        for ((text, pos), row) in rows.iter().zip(&got) {
            text.assert_close(shape, *pos, row, "capped decode");
            let alone = run_decode(device, shape, &[(text, *pos)], pos + 1, 14);
            assert_eq!(&alone[0], row, "{shape:?}, pos {pos}: alone and in a batch");
        }
    }
}

/// Each chunk with a cache that ends with it; then all in one launch. In one of them the first of a warp's rows sees
/// all of a step but its last key.
fn chunks_of(device: &Device, head_dim: usize) {
    let shapes = [shape(64, 2, 1, 0), shape(96, 1, 1, 40), shape(128, 1, 1, 0)];
    for shape in shapes.into_iter().filter(|shape| shape.head_dim == head_dim) {
        let text = Text::new(shape, 200, 4.0);
        let whole = run_prefill(device, shape, &[(&text, 0..200)], 6);
        let chunks = [0..37, 37..93, 93..94, 94..199, 199..200].map(|rows| (&text, rows));
        let one_by_one: Vec<_> = chunks
            .iter()
            .flat_map(|chunk| run_prefill(device, shape, std::slice::from_ref(chunk), 7))
            .collect();
        assert_eq!(one_by_one, whole, "{shape:?}: chunks");
        assert_eq!(run_prefill(device, shape, &chunks, 8), whole, "{shape:?}: chunks at once");
    }
}

/// [`prefill_tiles`].
fn tiles(device: &Device) {
    let span = |n_rows, first_pos| Span { n_rows, first_pos, ..Span::default() };
    let tiles = prefill_tiles(device, &[span(65, 0), span(0, 9), span(10, 90), span(128, 10)]);
    if device.is_hopper() {
        assert_eq!(tiles, [[3, 0], [2, 0], [0, 0]]);
    } else {
        assert_eq!(tiles, [[3, 64], [2, 0], [3, 0], [0, 64], [0, 0]]);
    }
}

/// [`attention_decode`]: the formula, groups, windows, splits, neighbours, repeated launches.
pub(crate) fn decode(device: &Device) {
    HEAD_DIMS.iter().for_each(|&head_dim| decode_of(device, head_dim));
}

/// The same, of one head_dim.
pub(crate) fn decode_of(device: &Device, head_dim: usize) {
    let shapes = [
        shape(64, 2, 2, 0),
        shape(80, 3, 1, 0),
        shape(96, 8, 2, 0),
        shape(128, 8, 1, 0),
        shape(64, 20, 1, 0),
        shape(64, 2, 1, 1),
        shape(80, 2, 1, 16),
        shape(96, 2, 1, 100),
        shape(128, 1, 1, 513),
    ];
    let lengths = [&LENGTHS[..], &[512, 1025, 1100]].concat();
    for shape in shapes.into_iter().filter(|shape| shape.head_dim == head_dim) {
        let texts: Vec<Text> = lengths.iter().map(|&len| Text::new(shape, len, 1.0)).collect();
        let rows: Vec<_> = texts.iter().zip(&lengths).map(|(text, &len)| (text, len - 1)).collect();
        let got = run_decode(device, shape, &rows, 1100, 1);
        for ((text, pos), row) in rows.iter().zip(&got) {
            text.assert_close(shape, *pos, row, "decode");
        }
        // Alone: rows of up to 512 keys are written without attention_combine.
        for (row, in_batch) in rows.iter().zip(&got) {
            let alone = run_decode(device, shape, &[*row], row.1 + 1, 2);
            assert_eq!(&alone[0], in_batch, "{shape:?}, pos {}: alone and in a batch", row.1);
        }
        let short = run_decode(device, shape, &rows[..8], 512, 3);
        assert_eq!(short, got[..8], "{shape:?}: a batch of one split");
    }

    decode_capped_of(device, head_dim);
    match head_dim {
        64 => repeat(device),
        128 => decode_large(device),
        _ => (),
    }
}

/// Large scores, with which the softmax is nearly 0 for all but the largest.
fn decode_large(device: &Device) {
    for logits in [100.0, 3000.0] {
        let shape = shape(128, 4, 1, 0);
        let text = Text::new(shape, 600, logits);
        for pos in [99, 599] {
            let got = run_decode(device, shape, &[(&text, pos)], 600, 4);
            text.assert_close(shape, pos, &got[0], "large logits");
        }
    }
}

/// A recorded launch for up to 1100 keys, repeated with other positions.
fn repeat(device: &Device) {
    let shape = shape(64, 4, 2, 0);
    let text = Text::new(shape, 1100, 1.0);
    let cache = Cache::new(device, shape, &[(&text, 0..1100)], 5);
    let qkv = upload_qkv(device, shape, &[Some((&text, 7)), Some((&text, 1050))]);
    let mut positions = device.upload(&[1099u32, 1099]).unwrap();
    let table_starts = device.upload(&[cache.table_starts[0]; 2]).unwrap();
    let scratch_len = decode_scratch_len(2, shape.n_heads, shape.head_dim, 1100);
    let mut scratch = device.upload(&vec![f32::NAN; scratch_len]).unwrap();
    let mut out = device.zeros(2 * shape.out_stride()).unwrap();
    let attention = cache.attention(shape, &qkv);
    let graph = device
        .capture(|| {
            attention_decode(
                device,
                &attention,
                0..2,
                &positions,
                &table_starts,
                1100,
                &mut scratch,
                &mut out,
            )
        })
        .unwrap();
    positions.write(0, &[7, 1050]).unwrap();
    graph.launch().unwrap();
    let got = download_out(shape, &out, |_| true);
    for (row, pos) in got.iter().zip([7, 1050]) {
        let alone = run_decode(device, shape, &[(&text, pos)], pos + 1, 6);
        assert_eq!(row, &alone[0], "pos {pos}: repeated and alone");
    }
}

/// What the launchers refuse, and what they allow.
pub(crate) fn errors(device: &Device) {
    let shape = shape(64, 4, 2, 0);
    let text = Text::new(shape, 600, 1.0);
    let cache = Cache::new(device, shape, &[(&text, 0..600)], 1);
    let qkv = upload_qkv(device, shape, &[Some((&text, 599)), Some((&text, 598))]);
    let good = cache.attention(shape, &qkv);
    let short: Buffer<bf16> = device.zeros(64).unwrap();
    let odd: Buffer<bf16> = device.zeros(100).unwrap();
    let no_tables: Buffer<u32> = device.zeros(0).unwrap();

    let wrong = [
        ("n_heads", Attention { n_heads: 3, ..good }),
        ("n_heads", Attention { n_kv_heads: 0, ..good }),
        ("scale", Attention { scale: f32::NAN, ..good }),
        ("soft_cap", Attention { soft_cap: Some(0.0), ..good }),
        ("qkv_stride", Attention { qkv_stride: 192, ..good }),
        ("qkv_stride", Attention { qkv_stride: 264, ..good }),
        ("out_stride", Attention { out_stride: 192, ..good }),
        ("qkv", Attention { qkv: &short, ..good }),
        ("out", Attention { n_rows: 1, out_stride: 1024, ..good }),
        ("k", Attention { k: &odd, ..good }),
        ("v", Attention { v: &short, ..good }),
        ("block_tables", Attention { block_tables: &no_tables, ..good }),
    ];
    let spans = device.upload(&[Span { n_rows: 2, first_pos: 598, ..Span::default() }]).unwrap();
    let tiles = device.upload(&[[0u32, 0]]).unwrap();
    let (two, one) = (device.zeros::<u32>(2).unwrap(), device.zeros::<u32>(1).unwrap());
    let scratch_len = decode_scratch_len(2, 4, 64, 600);
    assert_eq!(scratch_len, 2 * 2 * 4 * 66);
    assert_eq!(decode_scratch_len(2, 4, 64, 512), 0);
    let mut scratch = device.zeros(scratch_len).unwrap();
    let mut less = device.zeros(scratch_len - 1).unwrap();
    let mut out = device.zeros(2 * shape.out_stride()).unwrap();

    let operand = |result: Result<(), Error>| match result {
        Err(Error::Shape { operand, .. }) => operand,
        other => panic!("a wrong shape went through: {other:?}"),
    };
    for (name, attention) in &wrong {
        let prefill = attention_prefill(device, attention, &spans, &tiles, 1, &mut out);
        assert_eq!(operand(prefill), *name);
        let rows = 0..attention.n_rows;
        let decode = attention_decode(device, attention, rows, &two, &two, 600, &mut scratch, &mut out);
        assert_eq!(operand(decode), *name);
    }
    let other = Attention { head_dim: 72, ..good };
    let refused = attention_prefill(device, &other, &spans, &tiles, 1, &mut out);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");

    assert_eq!(operand(attention_prefill(device, &good, &spans, &tiles, 2, &mut out)), "tiles");
    let mut decode = |positions, starts, scratch: &mut Buffer<f32>, max| {
        attention_decode(device, &good, 0..2, positions, starts, max, scratch, &mut out)
    };
    assert_eq!(operand(decode(&one, &two, &mut scratch, 600)), "positions");
    assert_eq!(operand(decode(&two, &one, &mut scratch, 600)), "table_starts");
    assert_eq!(operand(decode(&two, &two, &mut less, 600)), "scratch");
    assert_eq!(operand(decode(&two, &two, &mut scratch, 1 << 26)), "grid");

    // Wrong contents cause no access outside of the buffers.
    let wild = device.upload(&[u32::MAX, 1 << 31]).unwrap();
    decode(&wild, &wild, &mut scratch, 600).unwrap();
    let wild_spans = [
        Span { first_row: 5, n_rows: 9, ..Span::default() },
        Span { first_row: 1, n_rows: u32::MAX, first_pos: u32::MAX, table_start: u32::MAX, reserved: 0 },
        Span { n_rows: 2, first_pos: u32::MAX, ..Span::default() },
        Span { first_row: 1, n_rows: u32::MAX, first_pos: 500, ..Span::default() },
    ];
    let spans = device.upload(&wild_spans).unwrap();
    let tiles = device.upload(&[[0u32, 0], [1, 0], [1, 64], [2, 0], [3, 0], [3, 64], [7, 0]]).unwrap();
    for window in [0, 5] {
        let attention = Attention { window, ..good };
        attention_prefill(device, &attention, &spans, &tiles, 7, &mut out).unwrap();
    }

    // Nothing to do.
    let none = Attention { n_rows: 0, ..good };
    attention_prefill(device, &none, &spans, &tiles, 0, &mut out).unwrap();
    attention_decode(device, &none, 0..0, &two, &two, 600, &mut scratch, &mut out).unwrap();
    let outside = attention_decode(device, &good, 1..3, &two, &two, 600, &mut scratch, &mut out);
    assert_eq!(operand(outside), "rows");
    device.synchronize().unwrap();
}
