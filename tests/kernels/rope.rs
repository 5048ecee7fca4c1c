//! Tests the rotation against its formula in f64, and the places to which q, k and v are written.

use half::bf16;
use welm_kernels::attention::BLOCK_KEYS;
use welm_kernels::error::Error;
use welm_kernels::rope::{Pairing, Rope, rope_and_cache};
use welm_kernels::{Buffer, Device};

use crate::random::Random;

/// The value of elements that no kernel has written.
const UNTOUCHED: u16 = 0x7fc1;
/// A slot that is not in the cache.
const NOWHERE: u32 = u32::MAX;

/// All checks.
pub(crate) fn check(device: &Device) {
    let [half, interleaved] = [Pairing::HalfSplit, Pairing::Interleaved];
    for (n, heads, kv_heads, head_dim, rotary_dim) in [
        (1, 1, 1, 64, 64),
        (3, 4, 2, 128, 128),
        (5, 3, 1, 80, 20),
        (2, 5, 5, 96, 96),
        (7, 2, 1, 2, 2),
        (2, 1, 1, 1, 0),
        (4, 2, 2, 33, 10),
        (2, 8, 1, 256, 66),
        (40, 2, 1, 64, 2),
    ] {
        for pairing in [half, interleaved] {
            for norms in [[false, false], [true, true], [true, false], [false, true]] {
                let case = Case::new(n, [heads, kv_heads, head_dim], rotary_dim, pairing, norms);
                case.run(device, 1.0);
            }
        }
    }
    for size in [1e15, 1e-10] {
        Case::new(3, [2, 1, 64], 64, half, [true, true]).run(device, size);
        Case::new(3, [2, 1, 64], 32, half, [false, false]).run(device, size);
    }
    neighbours(device);
    errors(device);
}

struct Case {
    n: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    pairing: Pairing,
    stride: usize,
    n_blocks: usize,
    cos: Vec<f32>,                // (n, rotary_dim / 2)
    sin: Vec<f32>,                // (n, rotary_dim / 2)
    slots: Vec<u32>,              // (n)
    norms: [Option<Vec<f32>>; 2], // (head_dim), of q and k
}

/// qkv, k and v after a call.
struct Done {
    qkv: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
}

impl Case {
    fn new(n: usize, heads: [usize; 3], rotary_dim: usize, pairing: Pairing, norms: [bool; 2]) -> Case {
        let [heads, kv_heads, head_dim] = heads;
        let mut random = Random::new((n * 1000 + head_dim) as u64);
        let stride = ((heads + 2 * kv_heads) * head_dim).next_multiple_of(64) + 64;
        let n_blocks = n.div_ceil(BLOCK_KEYS) + 3;
        let mut slots: Vec<u32> = (0..(n_blocks * BLOCK_KEYS) as u32).collect();
        random.shuffle(&mut slots);
        slots.truncate(n);
        if n > 2 {
            slots[1] = NOWHERE;
        }
        if n > 3 {
            slots[2] = (n_blocks * BLOCK_KEYS) as u32;
        }
        let angles: Vec<f32> = random.f32s(n * rotary_dim / 2, 500.0);
        let norms = norms.map(|norm| norm.then(|| random.f32s(head_dim, 2.0)));
        let (cos, sin) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        Case { n, heads, kv_heads, head_dim, rotary_dim, pairing, stride, n_blocks, cos, sin, slots, norms }
    }

    fn launch(&self, device: &Device, qkv: &[bf16]) -> Done {
        let norms = self.norms.each_ref().map(|norm| norm.as_ref().map(|norm| device.upload(norm).unwrap()));
        let rope = Rope {
            n_heads: self.heads,
            n_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim,
            pairing: self.pairing,
            q_norm: norms[0].as_ref(),
            k_norm: norms[1].as_ref(),
            eps: 1e-6,
        };
        let mut qkv = device.upload(qkv).unwrap();
        let cos = device.upload(&self.cos).unwrap();
        let sin = device.upload(&self.sin).unwrap();
        let slots = device.upload(&self.slots).unwrap();
        let cache = self.n_blocks * self.kv_heads * BLOCK_KEYS * self.head_dim;
        let mut k = device.upload(&vec![bf16::from_bits(UNTOUCHED); cache]).unwrap();
        let mut v = device.upload(&vec![bf16::from_bits(UNTOUCHED); cache]).unwrap();
        let (n, stride) = (self.n, self.stride);
        rope_and_cache(device, &rope, &mut qkv, stride, n, &cos, &sin, &slots, &mut k, &mut v).unwrap();
        Done { qkv: qkv.to_vec().unwrap(), k: k.to_vec().unwrap(), v: v.to_vec().unwrap() }
    }

    /// A head of row `row` in f64, and the magnitude of the terms of each value.
    fn expected(&self, row: usize, head: &[bf16], norm: &Option<Vec<f32>>) -> Vec<(f64, f64)> {
        let mut x: Vec<f64> = head.iter().map(|x| x.to_f64()).collect();
        if let Some(weight) = norm {
            let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter_mut().zip(weight).for_each(|(x, &w)| *x *= f64::from(w) / (square + 1e-6).sqrt());
        }
        let mut out: Vec<(f64, f64)> = x.iter().map(|x| (*x, x.abs())).collect();
        let pairs = self.rotary_dim / 2;
        for i in 0..pairs {
            let (ia, ib) = match self.pairing {
                Pairing::HalfSplit => (i, i + pairs),
                Pairing::Interleaved => (2 * i, 2 * i + 1),
            };
            let at = row * pairs + i;
            let (cos, sin) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
            let size = x[ia].abs() + x[ib].abs();
            out[ia] = (x[ia] * cos - x[ib] * sin, size);
            out[ib] = (x[ib] * cos + x[ia] * sin, size);
        }
        out
    }

    fn assert_close(&self, what: &str, got: &[bf16], want: &[(f64, f64)]) {
        for (c, (got, (want, size))) in got.iter().zip(want).enumerate() {
            // Half a unit of bf16 of the result, and a little for f32.
            let close = (got.to_f64() - want).abs() <= want.abs() / 256.0 + size * 1e-6;
            let Case { head_dim, rotary_dim, pairing, .. } = self;
            assert!(close, "{what}, {head_dim}, {rotary_dim}, {pairing:?}, column {c}: {got} for {want}");
        }
    }

    fn run(&self, device: &Device, size: f32) {
        let (dim, stride) = (self.head_dim, self.stride);
        let qkv = Random::new(3).bf16s(self.n * stride, size);
        let done = self.launch(device, &qkv);
        let mut written = vec![false; done.k.len()];
        for (row, &slot) in self.slots.iter().enumerate() {
            let (before, after) = (&qkv[row * stride..][..stride], &done.qkv[row * stride..][..stride]);
            let (q, kv) = before.split_at(self.heads * dim);
            for (h, head) in q.chunks_exact(dim).enumerate() {
                let want = self.expected(row, head, &self.norms[0]);
                self.assert_close("q", &after[h * dim..][..dim], &want);
            }
            assert_eq!(kv, &after[q.len()..], "row {row}: k, v and padding stay");
            if slot as usize >= self.n_blocks * BLOCK_KEYS {
                continue;
            }
            let (block, offset) = (slot as usize / BLOCK_KEYS, slot as usize % BLOCK_KEYS);
            for h in 0..self.kv_heads {
                let at = ((block * self.kv_heads + h) * BLOCK_KEYS + offset) * dim;
                let want = self.expected(row, &kv[h * dim..][..dim], &self.norms[1]);
                self.assert_close("k", &done.k[at..][..dim], &want);
                assert_eq!(&done.v[at..][..dim], &kv[(self.kv_heads + h) * dim..][..dim], "row {row}: v");
                written[at..at + dim].fill(true);
            }
        }
        for (at, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
            let bits = [done.k[at].to_bits(), done.v[at].to_bits()];
            assert_eq!(bits, [UNTOUCHED; 2], "{at} of the cache is no row's");
        }
    }
}

/// The bits of a row do not depend on the other rows.
fn neighbours(device: &Device) {
    let mut case = Case::new(20, [3, 1, 96], 48, Pairing::HalfSplit, [true, true]);
    let qkv = Random::new(4).bf16s(20 * case.stride, 1.0);
    let all = case.launch(device, &qkv);
    let (row, stride) = (13, case.stride);
    let slot = case.slots[row] as usize;
    (case.n, case.slots) = (1, vec![slot as u32]);
    (case.cos, case.sin) = (case.cos[row * 24..][..24].to_vec(), case.sin[row * 24..][..24].to_vec());
    let alone = case.launch(device, &qkv[row * stride..][..stride]);
    assert_eq!(alone.qkv, all.qkv[row * stride..][..stride]);
    let at = slot * 96; // one key-value head: blocks follow each other
    assert_eq!(alone.k[at..at + 96], all.k[at..at + 96]);
    assert_eq!(alone.v[at..at + 96], all.v[at..at + 96]);
}

/// What the launcher refuses.
fn errors(device: &Device) {
    let good = Rope {
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        rotary_dim: 8,
        pairing: Pairing::HalfSplit,
        q_norm: None,
        k_norm: None,
        eps: 1e-6,
    };
    // Lengths of qkv, cos, sin, slots, k, v for 3 rows with a stride of 64.
    let lens = [192, 12, 12, 3, 512, 512];
    let call = |rope: &Rope, n, stride, [qkv, cos, sin, slots, k, v]: [usize; 6]| {
        let bf16s = |len| device.zeros::<bf16>(len).unwrap();
        let f32s = |len| -> Buffer<f32> { device.zeros(len).unwrap() };
        let slots = device.zeros(slots).unwrap();
        let (mut qkv, mut k, mut v) = (bf16s(qkv), bf16s(k), bf16s(v));
        rope_and_cache(device, rope, &mut qkv, stride, n, &f32s(cos), &f32s(sin), &slots, &mut k, &mut v)
    };
    let operand = |result: Result<(), Error>| match result {
        Err(Error::Shape { operand, .. }) => operand,
        other => panic!("a wrong shape went through: {other:?}"),
    };
    for (name, rope) in [
        ("heads", Rope { n_heads: 0, ..good }),
        ("heads", Rope { n_kv_heads: 0, ..good }),
        ("heads", Rope { head_dim: 0, rotary_dim: 0, ..good }),
        ("heads", Rope { n_heads: usize::MAX, ..good }),
        ("rotary_dim", Rope { rotary_dim: 7, ..good }),
        ("rotary_dim", Rope { rotary_dim: 18, ..good }),
        ("stride", Rope { n_heads: 3, ..good }),
        ("q_norm", Rope { q_norm: Some(&device.zeros(15).unwrap()), ..good }),
        ("k_norm", Rope { k_norm: Some(&device.zeros(17).unwrap()), ..good }),
    ] {
        assert_eq!(operand(call(&rope, 3, 64, lens)), name);
    }
    for (i, name) in ["qkv", "cos", "sin", "slot_mapping", "k", "v"].into_iter().enumerate() {
        let mut short = lens;
        short[i] -= 1;
        assert_eq!(operand(call(&good, 3, 64, short)), name);
    }
    assert_eq!(operand(call(&good, usize::MAX, 64, lens)), "qkv");
    call(&good, 0, 64, [0; 6]).unwrap();
    call(&good, 3, 64, [192, 12, 12, 3, 0, 0]).unwrap(); // with an empty cache, no slot is valid
    device.synchronize().unwrap();
}
