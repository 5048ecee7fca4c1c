//! Attention over caches whose blocks are in random order, as in an engine that has run for some time.

use half::bf16;
use welm_kernels::attention::{
    Attention, BLOCK_KEYS, Span, attention_decode, attention_prefill, decode_scratch_len, prefill_tiles,
};
use welm_kernels::{Buffer, Device, Result};

use super::{Heads, Work, bf16_beginning, noise};

/// Queries, cache and result.
struct Operands {
    heads: Heads,
    n_rows: usize,
    qkv: Buffer<bf16>,         // (n_rows, qkv_dim)
    k: Buffer<bf16>,           // (n_blocks, n_kv_heads, BLOCK_KEYS, head_dim)
    v: Buffer<bf16>,           // likewise
    block_tables: Buffer<u32>, // (n_blocks)
    out: Buffer<bf16>,         // (n_rows, n_heads * head_dim)
}

impl Operands {
    fn new(device: &Device, heads: Heads, n_rows: usize, n_blocks: usize) -> Result<Self> {
        let cache = n_blocks * heads.n_kv_heads * BLOCK_KEYS * heads.head_dim;
        let out_stride = (heads.n_heads * heads.head_dim).next_multiple_of(64);
        Ok(Operands {
            heads,
            n_rows,
            qkv: noise::bf16s(device, n_rows * heads.qkv_dim().next_multiple_of(64), 1.0, 1)?,
            k: noise::bf16s(device, cache, 1.0, 2)?,
            v: noise::bf16s(device, cache, 1.0, 3)?,
            block_tables: device.upload(&noise::order(n_blocks, 4))?,
            out: device.zeros(n_rows * out_stride)?,
        })
    }

    /// The operands in the form that the launchers take, and the result.
    fn parts(&mut self) -> (Attention<'_>, &mut Buffer<bf16>) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let attention = Attention {
            n_heads,
            n_kv_heads,
            head_dim,
            window: 0,
            scale: 1.0 / (head_dim as f32).sqrt(),
            soft_cap: None,
            qkv: &self.qkv,
            qkv_stride: self.heads.qkv_dim().next_multiple_of(64),
            k: &self.k,
            v: &self.v,
            block_tables: &self.block_tables,
            n_rows: self.n_rows,
            out_stride: (n_heads * head_dim).next_multiple_of(64),
        };
        (attention, &mut self.out)
    }
}

/// The newest tokens of some sequences; each set has sequences of its own.
pub(super) struct Decode {
    operands: Operands,
    kv_len: usize,
    positions: Buffer<u32>,         // (batch)
    table_starts: Vec<Buffer<u32>>, // (batch) each
    scratch: Buffer<f32>,
}

impl Decode {
    pub(super) fn new(
        device: &Device,
        sets: usize,
        heads: Heads,
        batch: usize,
        kv_len: usize,
    ) -> Result<Self> {
        let blocks = kv_len.div_ceil(BLOCK_KEYS);
        let starts = |set| (0..batch).map(move |i| ((set * batch + i) * blocks) as u32).collect::<Vec<_>>();
        let scratch_len = decode_scratch_len(batch, heads.n_heads, heads.head_dim, kv_len);
        Ok(Decode {
            operands: Operands::new(device, heads, batch, sets * batch * blocks)?,
            kv_len,
            positions: device.upload(&vec![kv_len as u32 - 1; batch])?,
            table_starts: (0..sets).map(|set| device.upload(&starts(set))).collect::<Result<_>>()?,
            scratch: device.uninit(scratch_len)?,
        })
    }
}

impl Work for Decode {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        let (positions, starts) = (&self.positions, &self.table_starts[set]);
        let rows = 0..self.operands.n_rows;
        let (attention, out) = self.operands.parts();
        attention_decode(device, &attention, rows, positions, starts, self.kv_len, &mut self.scratch, out)
    }

    fn output(&self) -> Result<Vec<f32>> {
        bf16_beginning(&self.operands.out)
    }
}

/// A prompt from its beginning.
pub(super) struct Prefill {
    operands: Operands,
    spans: Buffer<Span>,
    tiles: Buffer<[u32; 2]>,
}

impl Prefill {
    pub(super) fn new(device: &Device, heads: Heads, n: usize) -> Result<Self> {
        let span = Span { first_row: 0, n_rows: n as u32, first_pos: 0, table_start: 0, reserved: 0 };
        Ok(Prefill {
            operands: Operands::new(device, heads, n, n.div_ceil(BLOCK_KEYS))?,
            spans: device.upload(&[span])?,
            tiles: device.upload(&prefill_tiles(device, &[span]))?,
        })
    }
}

impl Work for Prefill {
    fn launch(&mut self, device: &Device, _set: usize) -> Result<()> {
        let (attention, out) = self.operands.parts();
        attention_prefill(device, &attention, &self.spans, &self.tiles, self.tiles.len(), out)
    }

    fn output(&self) -> Result<Vec<f32>> {
        bf16_beginning(&self.operands.out)
    }
}
