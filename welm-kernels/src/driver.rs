//! The dozen calls that the launchers need of a device, as a trait.
//!
//! There are two implementations: the CUDA driver ([`Device::open`](crate::Device::open)), and the emulator of this
//! repository's tests, which runs the same kernels as C++ on the CPU. A program that already has a context and a stream
//! can write its own.
//!
//! One driver is one device, one context and one stream. Calls take effect in the order in which they are made.

use crate::error::Result;
pub use crate::kernel::Kernel;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name, as the driver spells it.
    pub name: String,
    /// Compute capability, `(9, 0)` for an H100.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Most bytes of shared memory that a block may have.
    pub shared_bytes: u32,
}

/// An address on the device.
pub type Ptr = u64;

/// How a kernel is spread over the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A description of a row-major matrix in device memory for the copy engine (`CUtensorMap`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A matrix for [`Driver::tensor_map`]: `(rows, cols)` elements of 1 byte (s8) or 2 bytes (bf16). The copy engine copies
/// boxes `(box_rows, box_cols)` of it. A row of a box has 128 bytes, with the 128-byte swizzle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorShape {
    /// Bytes of an element, 1 or 2.
    pub element_bytes: u32,
    /// Rows of the matrix.
    pub rows: u64,
    /// Columns of the matrix.
    pub cols: u64,
    /// Bytes from row to row, a multiple of 16.
    pub row_bytes: u64,
    /// Rows of a box, at most 256.
    pub box_rows: u32,
    /// Columns of a box; `box_cols * element_bytes` is 128.
    pub box_cols: u32,
}

/// A device, as the launchers see it.
///
/// # Safety
/// An implementation keeps memory from [`Driver::alloc`] valid until it is freed, and runs launches, copies and
/// graphs in the order of the calls. Addresses passed to its methods must lie in such memory, with room for what
/// is copied; [`crate::Buffer`] and the launchers see to that.
pub unsafe trait Driver: Send + Sync {
    /// What the device is.
    fn info(&self) -> DeviceInfo;
    /// Free memory, in bytes.
    fn free_bytes(&self) -> Result<u64>;
    /// `bytes` of memory (more than 0), aligned to 256, of undefined content.
    fn alloc(&self, bytes: u64) -> Result<Ptr>;
    /// Gives memory back.
    ///
    /// # Safety
    /// `at` comes from [`Driver::alloc`] and is not used any more.
    unsafe fn free(&self, at: Ptr);
    /// Copies to the device; `from` can be changed when the call returns.
    ///
    /// # Safety
    /// There is room for `from` at `to`.
    unsafe fn upload(&self, to: Ptr, from: &[u8]) -> Result<()>;
    /// Copies from the device, after everything before it has run.
    ///
    /// # Safety
    /// There are `to.len()` bytes at `from`.
    unsafe fn download(&self, to: &mut [u8], from: Ptr) -> Result<()>;
    /// Copies on the device; the two do not overlap.
    ///
    /// # Safety
    /// Both have `bytes` bytes.
    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: u64) -> Result<()>;
    /// Sets every byte.
    ///
    /// # Safety
    /// `at` has `bytes` bytes.
    unsafe fn fill(&self, at: Ptr, byte: u8, bytes: u64) -> Result<()>;
    /// Starts a kernel whose only parameter is the struct `params`.
    ///
    /// # Safety
    /// `params` is what the kernel takes. Every address in it is valid for what the kernel reads and writes there.
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, params: &[u8]) -> Result<()>;
    /// Waits until everything has run.
    fn synchronize(&self) -> Result<()>;
    /// Describes a matrix at `at` to the copy engine. Only devices of capability 9.0 have one.
    fn tensor_map(&self, at: Ptr, shape: TensorShape) -> Result<TensorMap>;
    /// From here on launches, fills and copies on the device are recorded instead of run.
    fn begin_capture(&self) -> Result<()>;
    /// Ends the recording and returns its number.
    fn end_capture(&self) -> Result<u64>;
    /// Runs a recording.
    ///
    /// # Safety
    /// `graph` comes from [`Driver::end_capture`], and all memory that it uses is still allocated.
    unsafe fn launch_graph(&self, graph: u64) -> Result<()>;
    /// Deletes a recording.
    fn free_graph(&self, graph: u64);
}
