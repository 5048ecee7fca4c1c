//! Predicts what fraction of its limit a kernel reaches on an H100. Comparing with a measurement shows where we are
//! wrong.
//!
//! A launch is predicted to take
//!
//! ```text
//! start of each kernel + round trips to memory, one after another
//!     + the longer of: bytes / rate of memory,  operations / (rate of products * share * fill)
//!     + bytes of the result that are written when no block is left to multiply meanwhile
//! ```
//!
//! The rate of memory is that of a copy, or the bytes that the resident blocks have in flight divided by one latency,
//! if that is less. "Fill" is how full the waves of blocks are on 132 multiprocessors. The number of blocks comes from
//! the launchers' grids, blocks a multiprocessor from the kernels' launch bounds, and bytes in flight from the loads
//! before the first wait in the machine code. 132 multiprocessors and the peak rates are from NVIDIA's data sheet (H100
//! SXM5). The other figures are assumptions, each with its reason. None of this was measured on a GPU.

use welm_kernels::gemm::{narrow_tiles, split_along_k};

use super::{Epilogue, Form, Heads, Limit, Operands, Shape};

const MULTIPROCESSORS: f64 = 132.0;
/// Bytes per second of a copy: 0.9 of 3.35 TB/s.
const COPY: f64 = 3.0e12;
/// Operations per second of large products: 0.75 of 989 and of 1,979 T/s, because of the power limit.
const BF16: f64 = 7.4e14;
const INT8: f64 = 1.48e15;
/// Seconds from the end of a kernel of a graph to the first instructions of the next.
const START: f64 = 1.5e-6;
/// Seconds of a load from memory under load.
const LATENCY: f64 = 0.8e-6;
/// Bytes per second that one multiprocessor can load: 64 a cycle.
const PORT: f64 = 64.0 * 1.7e9;
/// Fraction of the copy's rate that a loop reaches which also computes.
const STEADY: f64 = 0.95;

/// The launches of a shape.
struct Launch {
    kernels: f64,
    /// Blocks of the kernel that takes longest.
    blocks: usize,
    /// Blocks that a multiprocessor runs at once.
    resident: usize,
    /// Bytes that a block has in flight.
    in_flight: usize,
    /// Loads that wait for one another, with the first one.
    trips: f64,
    /// Fraction of the rate of products that a multiprocessor's loop reaches.
    share: f64,
    /// Bytes that are read or written after the last product.
    serial_bytes: usize,
}

impl Launch {
    /// A kernel that is bound by memory.
    fn of_memory(blocks: usize, resident: usize, in_flight: usize, trips: f64) -> Launch {
        Launch { kernels: 1.0, blocks, resident, in_flight, trips, share: 1.0, serial_bytes: 0 }
    }

    fn seconds(&self, bytes: f64, ops: f64, ops_rate: f64) -> f64 {
        let slots = MULTIPROCESSORS * self.resident as f64;
        let blocks = self.blocks as f64;
        let per_block = (self.in_flight as f64 / LATENCY).min(PORT);
        let memory = bytes / (COPY * STEADY).min(per_block * blocks.min(slots));
        let fill = blocks / ((blocks / slots).ceil() * slots);
        let products = ops / (ops_rate * self.share * fill);
        let serial = self.serial_bytes as f64 / COPY;
        self.kernels * START + self.trips * LATENCY + memory.max(products) + serial
    }
}

/// A matrix product of `n` rows.
fn product(operands: Operands, epilogue: Epilogue, n: usize, rows: usize) -> Launch {
    let int8_weights = operands != Operands::W16A16;
    let group_bytes = if int8_weights { 17 * 2 } else { 32 * 2 }; // of 32 columns of a row
    if n <= 32 && !matches!(operands, Operands::W8A8 | Operands::R8A8) {
        // 16 rows of the weight a block, or 32 for more tokens: 64 to 128 bytes a thread are in flight.
        let (tokens, strips) = if n <= 8 { (8, 1) } else { (16, if int8_weights { 2 } else { 1 }) };
        let blocks = n.div_ceil(tokens) * rows.div_ceil(16 * strips);
        return Launch::of_memory(blocks, if n <= 8 { 3 } else { 2 }, 256 * 64, 2.0);
    }
    let result = if epilogue == Epilogue::Add { 8 } else { 2 };
    let exact = n <= super::product::FEW; // mma.sync in the order of the few
    if exact || operands == Operands::R8A16 {
        // All but one or two of the stages, of two groups each, are in flight.
        let stages = if operands == Operands::W16A16 { 3 } else { 4 };
        let (tiles, in_flight) = (n.div_ceil(64) * rows.div_ceil(128), (2 * stages - 3) * 128 * group_bytes);
        // A split product has a block for each of 8 segments of K. Their f32 sums are written, and read by a second
        // kernel after the last product. We assume that they are not in the L2 cache.
        let split = split_along_k(n, rows, MULTIPROCESSORS as usize);
        let resident = if operands == Operands::W8A16 { 2 } else { 3 };
        let (blocks, resident, kernels, sums) =
            if split { (8 * tiles, resident, 2.0, 2 * 4 * 8) } else { (tiles, 1, 1.0, 0) };
        return Launch {
            kernels,
            share: 0.5, // mma.sync reaches about half of what wgmma does on Hopper
            serial_bytes: (result + sums) * n.div_ceil(64) * 64 * rows,
            ..Launch::of_memory(blocks, resident, in_flight, 1.0 + 2.0 * kernels)
        };
    }
    let blocks = |tokens: usize| n.div_ceil(tokens) * rows.div_ceil(128);
    let tokens = match operands {
        Operands::W8A8 => 128,
        _ if narrow_tiles(n, rows, MULTIPROCESSORS as usize) => 128,
        _ => 256,
    };
    let share = match operands {
        Operands::W8A16 => 0.75, // weights are converted to bf16 at the same time
        Operands::W8A8 => 0.25, // four cycles of conversion and scaling for one of products; see int8-modes.md
        _ => 0.85,
    };
    let share = if tokens == 128 { share * 0.9 } else { share }; // a tile of half the size reads more for a product
    // Stores of the last wave's tiles do not overlap with products.
    let last = blocks(tokens).min(MULTIPROCESSORS as usize);
    let serial_bytes = result * last * tokens * 128;
    Launch { share, serial_bytes, ..Launch::of_memory(blocks(tokens), 1, 4 * 128 * group_bytes * 2, 3.0) }
}

impl Shape {
    /// The fraction of its limit that it is predicted to reach on an H100.
    pub fn predicted(&self) -> f64 {
        let launch = match *self {
            Shape::Decode { heads: Heads { n_heads, n_kv_heads, head_dim }, batch, kv_len } => {
                // A block has 512 keys and the query heads that share them, 16 at most. Each of 4 warps has two blocks
                // of K and V in flight. If rows are split, a second kernel adds the parts.
                let splits = kv_len.div_ceil(512);
                let blocks = batch * n_kv_heads * (n_heads / n_kv_heads).div_ceil(16) * splits;
                let resident = if head_dim > 96 { 2 } else { 3 };
                let in_flight = 4 * 2 * 2 * 16 * head_dim * 2;
                let parts = if splits > 1 { 2.0 } else { 1.0 };
                Launch { kernels: parts, ..Launch::of_memory(blocks, resident, in_flight, 3.0 + parts) }
            }
            // A block has 128 rows of a head. It reaches half of the rate, because softmax is between two products.
            Shape::Prefill { heads, n } => {
                let blocks = n.div_ceil(128) * heads.n_heads;
                Launch { share: 0.55, ..Launch::of_memory(blocks, 1, 1 << 17, 4.0) }
            }
            Shape::Product { operands, epilogue, n, rows, .. } => product(operands, epilogue, n, rows),
            // All of x, weight and bias; one latency more for the reduction's barriers and divisions.
            Shape::Norm { n, dim, .. } => Launch::of_memory(n, 3, 12 * dim, 2.0),
            Shape::Convert { form: Form::RotatedInt8, n, .. } => Launch::of_memory(n, 4, 256 * 8, 3.0),
            Shape::Convert { n, dim, .. } => Launch::of_memory(n * dim.div_ceil(1024), 6, 256 * 8, 1.0),
            // A warp computes one head.
            Shape::Rope { heads, n } => {
                let blocks = n * (heads.n_heads + 2 * heads.n_kv_heads).div_ceil(4);
                Launch::of_memory(blocks, 8, 4 * heads.head_dim * 2, 2.0)
            }
            Shape::TopK { n, vocab, .. } => {
                let launch = Launch::of_memory(n * vocab.div_ceil(8192), 1, 512 * 64, 4.0);
                Launch { kernels: 2.0, ..launch }
            }
        };
        let (bytes, ops) = (self.bytes() as f64, self.ops() as f64);
        let (best, ops_rate) = match self.limit() {
            Limit::Copy => (bytes / COPY, BF16),
            Limit::Bf16 => (ops / BF16, BF16),
            Limit::Int8 => (ops / INT8, INT8),
        };
        best / launch.seconds(bytes, ops, ops_rate)
    }
}
