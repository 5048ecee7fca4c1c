//! How many blocks of a kernel a multiprocessor holds, by the rules of the CUDA programming guide ("Compute
//! Capabilities") and of Nsight Compute's occupancy calculator.

/// What a multiprocessor has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) threads: u32,
    pub(crate) blocks: u32,
    /// Registers, in four equal parts, of which a warp takes one.
    pub(crate) registers: u32,
    pub(crate) shared_bytes: u32,
}

impl Limits {
    /// Of capability 8.0 or 9.0.
    pub(crate) fn of(arch: &str) -> Limits {
        let shared_bytes = match arch {
            "80" => 164 << 10,
            "90a" => 228 << 10,
            other => panic!("the limits of sm_{other} are not known here"),
        };
        Limits { threads: 2048, blocks: 32, registers: 65_536, shared_bytes }
    }

    /// Blocks that fit by registers and threads, and blocks that also fit by shared memory.
    pub(crate) fn blocks(&self, threads: u32, registers: u32, shared_bytes: u32) -> (u32, u32) {
        let warps = threads.div_ceil(32);
        let of_a_warp = (registers * 32).next_multiple_of(256);
        let held = self.registers / 4 / of_a_warp * 4;
        let by_registers = (held / warps).min(self.threads / (32 * warps)).min(self.blocks);
        // The system uses 1 KiB of each block.
        let of_a_block = (shared_bytes + 1024).next_multiple_of(128);
        (by_registers, by_registers.min(self.shared_bytes / of_a_block))
    }
}

#[test]
fn blocks_of_known_kernels() {
    let (a100, h100) = (Limits::of("80"), Limits::of("90a"));
    // 64 warps of 32 registers; 33 registers are rounded up to 40 a thread.
    assert_eq!(a100.blocks(256, 32, 0), (8, 8));
    assert_eq!(a100.blocks(256, 33, 0), (6, 6));
    // 255 registers: 8 warps.
    assert_eq!(a100.blocks(256, 255, 0), (1, 1));
    assert_eq!(a100.blocks(32, 16, 0), (32, 32));
    // 168 registers for 384 threads fill 64,512 of 65,536.
    assert_eq!(h100.blocks(384, 168, 227 << 10), (1, 1));
    assert_eq!(h100.blocks(384, 168, (227 << 10) + 1), (1, 0));
    // Two blocks of 96.5 KiB fit 228 KiB and not 164.
    assert_eq!((a100.blocks(128, 177, 98_816), h100.blocks(128, 177, 98_816)), ((2, 1), (2, 2)));
}
