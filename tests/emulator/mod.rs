//! A CUDA device on the CPU. It runs the kernels' own source, compiled as C++ (`runtime.h`, `ptx.cuh`). Launchers use it
//! through the same trait [`Driver`] as a GPU.
//!
//! - A buffer lies between two inaccessible pages and ends at most 15 bytes before the second one, so that an access
//!   outside of it is caught. For this reason it is aligned to 16 bytes only, unlike on a GPU.
//! - New memory is NaN, as f32 and as bf16.
//! - Calls that CUDA refuses while a graph is recorded are refused here, too.
//! - Faults can be planned, to test how an engine handles them.
//!
//! | variable | |
//! |---|---|
//! | `WELM_EMULATOR_MMA=aligned` | products of bf16 are added as tensor cores do it (`sums.h`), not one after another |
//! | `WELM_EMULATOR_LOG=<file>` | each launch adds a line: kernel, threads of a block, bytes of shared memory |

pub mod compile;

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::raw::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use welm_kernels::Device;
use welm_kernels::driver::{DeviceInfo, Driver, Grid, Kernel, Ptr, TensorMap, TensorShape};
use welm_kernels::error::{Error, Result};

const PAGE: usize = 4096;
const FRESH: u8 = 0xff;
/// The value of the few bytes between a buffer and the inaccessible page after it.
const CANARY: u8 = 0xc5;
/// Marks a tensor map; see `ptx.cuh`.
const TENSOR_MAP: u64 = 0x7e50_0a11;

/// Options of the emulated device.
#[derive(Debug, Clone)]
pub struct Options {
    /// Compute capability; kernels for sm_90a run on `(9, 0)` only.
    pub capability: (u32, u32),
    /// Multiprocessors, by which launchers choose kernels and grids.
    pub multiprocessors: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Seed of the random order of threads and blocks.
    pub seed: u64,
    /// Whether products of bf16 are added as by a tensor core; see `sums.h`.
    pub aligned_sums: bool,
    /// Shared libraries that replace those of the normal kernels, by the stem of the `.cu` file.
    pub libraries: HashMap<String, PathBuf>,
    /// What launches of these libraries' kernels do.
    pub planted: Planted,
}

/// How kernels of other libraries than the normal ones run.
#[derive(Debug, Clone, Default)]
pub struct Planted {
    /// The number of the fault in their source that is on; 0 for none.
    pub fault: u32,
    /// Only kernels with one of these in their name can be launched. Empty for all.
    pub kernels: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Self {
        let seed = std::env::var("WELM_EMULATOR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let aligned_sums = match std::env::var("WELM_EMULATOR_MMA").as_deref() {
            Ok("aligned") => true,
            Err(std::env::VarError::NotPresent) => false,
            other => panic!("WELM_EMULATOR_MMA: expected aligned, got {other:?}"),
        };
        Options {
            capability: (8, 0),
            multiprocessors: 3,
            memory_bytes: 8 << 30,
            seed,
            aligned_sums,
            libraries: HashMap::new(),
            planted: Planted::default(),
        }
    }
}

/// A failure at a planned time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// After this many more launches (of kernels or graphs), the next one fails. The device stays usable.
    Launch(u32),
    /// As above, and the context is lost with it.
    ContextLost(u32),
    /// No recording becomes a graph.
    Recording,
}

/// A record of how a device was used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// Kernels that were launched, graphs' included.
    pub kernels: BTreeSet<&'static str>,
    /// Tensor maps that were made.
    pub tensor_maps: u64,
    /// A hash of everything that was downloaded, in order.
    pub downloads: u64,
}

/// The device.
pub struct Emulator {
    options: Options,
    inner: Mutex<Inner>,
}

struct Buffer {
    map: usize, // address of the first page, which is inaccessible
    map_bytes: usize,
    bytes: usize,
}

enum Recorded {
    Launch(Kernel, Grid, Vec<u8>),
    Copy(Ptr, Ptr, u64),
    Fill(Ptr, u8, u64),
}

#[derive(Default)]
struct Inner {
    buffers: HashMap<Ptr, Buffer>,
    used_bytes: u64,
    launches: u64,
    uploads: u64,
    used: Used,
    capture: Option<Vec<Recorded>>,
    graphs: HashMap<u64, Vec<Recorded>>,
    next_graph: u64,
    fault: Option<Fault>,
    lost: bool,
}

/// Only one launch runs at a time in the whole process, because signal handlers belong to the process. The value is the
/// memory of launches: addresses of stacks and of shared memory.
static LAUNCHING: Mutex<[usize; 2]> = Mutex::new([0; 2]);

#[repr(C)]
struct Launch {
    kernel: *const c_char,
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    params: *const c_void,
    params_bytes: u64,
    seed: u64,
    has_sm90: u32,
    aligned_sums: u32,
    planted_fault: u32,
    memory: *mut usize,
}

type LaunchFn = unsafe extern "C" fn(*const Launch, *mut c_char, u64) -> c_int;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library of a kernel file.
fn stock(file: &str) -> PathBuf {
    Path::new(env!("WELM_EMULATOR_LIBRARIES")).join(format!("{file}.so"))
}

/// `c` and the products of two rows of bf16, added as by a tensor core of capability 8.0 or 9.0; see `sums.h`.
pub fn aligned_sum(capability: (u32, u32), a: &[f32], b: &[f32], c: f32) -> f32 {
    assert_eq!(a.len(), b.len());
    let library = library(stock("gemm")).expect("the emulator's library");
    // SAFETY: `sums.h` defines it so, and both have this many values.
    unsafe {
        type Sum = unsafe extern "C" fn(*const f32, *const f32, u32, f32, u32) -> f32;
        let sum: libloading::Symbol<Sum> = library.get(b"emulator_aligned_sum").expect("a function");
        sum(a.as_ptr(), b.as_ptr(), a.len() as u32, c, (capability == (9, 0)).into())
    }
}

/// A library, which stays loaded.
fn library(path: PathBuf) -> Result<&'static Library> {
    static LOADED: Mutex<Vec<(PathBuf, &'static Library)>> = Mutex::new(Vec::new());
    let mut loaded = lock(&LOADED);
    if let Some((_, library)) = loaded.iter().find(|(known, _)| *known == path) {
        return Ok(library);
    }
    // SAFETY: one of our own libraries, whose initialisation only registers kernels.
    let library = unsafe { Library::new(&path) }.map_err(|e| Error::driver(path.display(), e))?;
    let library: &'static Library = Box::leak(Box::new(library));
    loaded.push((path, library));
    Ok(library)
}

impl Emulator {
    /// A device with these options.
    pub fn new(options: Options) -> Arc<Emulator> {
        Arc::new(Emulator { options, inner: Mutex::default() })
    }

    /// A device of a capability, as the launchers take it.
    pub fn device(capability: (u32, u32)) -> Device {
        Device::with_driver(Emulator::new(Options { capability, ..Options::default() }))
    }

    /// Plans a fault.
    pub fn plan(&self, fault: Fault) {
        lock(&self.inner).fault = Some(fault);
    }

    /// Launches so far, those of graphs included.
    pub fn launches(&self) -> u64 {
        lock(&self.inner).launches
    }

    /// Copies to the device so far.
    pub fn uploads(&self) -> u64 {
        lock(&self.inner).uploads
    }

    /// Graphs recorded so far.
    pub fn recordings(&self) -> u64 {
        lock(&self.inner).next_graph
    }

    /// How the device was used so far.
    pub fn used(&self) -> Used {
        lock(&self.inner).used.clone()
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        lock(&self.inner).used_bytes
    }

    fn enter(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = lock(&self.inner);
        if inner.lost { Err(Error::ContextLost("a planned fault".into())) } else { Ok(inner) }
    }

    /// As [`Emulator::enter`], for calls that cannot be recorded.
    fn enter_now(&self, call: &str) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.enter()?;
        if inner.capture.is_some() {
            return Err(Error::driver(call, "not permitted while a graph is recorded"));
        }
        Ok(inner)
    }
}

impl Inner {
    /// The buffer that holds `bytes` at `at`, or why there is none.
    fn check(&self, call: &str, at: Ptr, bytes: u64) -> Result<()> {
        let inside =
            self.buffers.iter().any(|(start, b)| *start <= at && at + bytes <= start + b.bytes as u64);
        if inside { Ok(()) } else { Err(Error::driver(call, format!("{at:#x}+{bytes} lies in no buffer"))) }
    }

    /// Which buffer the address at the end of an error is next to.
    fn near(&self, error: &str) -> String {
        let address = error.rsplit_once("at 0x").and_then(|(_, hex)| usize::from_str_radix(hex, 16).ok());
        let buffer = address.and_then(|at| {
            let mut buffers = self.buffers.iter().map(|(&start, buffer)| (start as usize, buffer.bytes));
            buffers
                .find(|&(start, bytes)| (start - PAGE..start + bytes + PAGE).contains(&at))
                .map(|b| (at, b))
        });
        buffer.map_or_else(String::new, |(at, (start, bytes))| {
            format!(", byte {} of a buffer of {bytes}", at as i64 - start as i64)
        })
    }

    fn run(&mut self, options: &Options, recorded: &Recorded) -> Result<()> {
        match *recorded {
            Recorded::Launch(kernel, grid, ref params) => self.launch(options, kernel, grid, params),
            Recorded::Copy(to, from, bytes) => {
                self.check("copy", to, bytes)?;
                self.check("copy", from, bytes)?;
                // SAFETY: both lie in buffers; the caller says that they do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes as usize) };
                Ok(())
            }
            Recorded::Fill(at, byte, bytes) => {
                self.check("fill", at, bytes)?;
                // SAFETY: it lies in a buffer.
                unsafe { std::ptr::write_bytes(at as *mut u8, byte, bytes as usize) };
                Ok(())
            }
        }
    }

    fn launch(&mut self, options: &Options, kernel: Kernel, grid: Grid, params: &[u8]) -> Result<()> {
        match &mut self.fault {
            Some(Fault::Launch(0)) => {
                self.fault = None;
                return Err(Error::launch(kernel, "a planned fault"));
            }
            Some(Fault::ContextLost(0)) => {
                self.lost = true;
                return Err(Error::ContextLost("a planned fault".into()));
            }
            Some(Fault::Launch(left) | Fault::ContextLost(left)) => *left -= 1,
            Some(Fault::Recording) | None => {}
        }
        self.launches += 1;
        self.used.kernels.insert(kernel.name);
        if let Some(log) = std::env::var_os("WELM_EMULATOR_LOG") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
            let line = format!("{} {} {}\n", kernel.name, grid.threads, grid.shared_bytes);
            file.and_then(|mut file| file.write_all(line.as_bytes()))
                .map_err(|e| Error::launch(kernel, e))?;
        }
        let other = options.libraries.get(kernel.file);
        let allowed = options.planted.kernels;
        if other.is_some() && !allowed.is_empty() && !allowed.iter().any(|name| kernel.name.contains(name)) {
            return Err(Error::launch(kernel, "no such kernel"));
        }
        let library = library(other.cloned().unwrap_or_else(|| stock(kernel.file)))?;
        // Parameters of their own, aligned for a tensor map.
        let mut aligned = vec![TensorMap([0; 16]); params.len().div_ceil(size_of::<TensorMap>())];
        // SAFETY: as long as `params`, rounded up.
        unsafe { std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len()) };
        let name = CString::new(kernel.name).map_err(|e| Error::launch(kernel, e))?;
        let mut launch = Launch {
            kernel: name.as_ptr(),
            blocks: grid.blocks,
            threads: grid.threads,
            shared_bytes: grid.shared_bytes,
            params: aligned.as_ptr().cast(),
            params_bytes: params.len() as u64,
            seed: options.seed.wrapping_mul(1_000_003).wrapping_add(self.launches),
            has_sm90: (options.capability == (9, 0)).into(),
            aligned_sums: options.aligned_sums.into(),
            planted_fault: options.planted.fault,
            memory: std::ptr::null_mut(),
        };
        let mut error = [0u8; 512];
        let failed = {
            let mut memory = lock(&LAUNCHING);
            launch.memory = memory.as_mut_ptr();
            // SAFETY: `runtime.h` defines it so.
            unsafe {
                let run: libloading::Symbol<LaunchFn> =
                    library.get(b"emulator_launch").map_err(|e| Error::launch(kernel, e))?;
                run(&launch, error.as_mut_ptr().cast(), error.len() as u64)
            }
        };
        if failed != 0 {
            let end = error.iter().position(|&b| b == 0).unwrap_or(error.len());
            let text = String::from_utf8_lossy(&error[..end]);
            return Err(Error::launch(kernel, format!("{text}{}", self.near(&text))));
        }
        for (&start, buffer) in &self.buffers {
            let end = start as usize + buffer.bytes;
            // SAFETY: up to the inaccessible page the memory is the buffer's.
            let slack =
                unsafe { std::slice::from_raw_parts(end as *const u8, end.next_multiple_of(16) - end) };
            if slack.iter().any(|&b| b != CANARY) {
                let reason = format!("wrote past the end of a buffer of {} bytes", buffer.bytes);
                return Err(Error::launch(kernel, reason));
            }
        }
        Ok(())
    }
}

// SAFETY: memory is mapped until it is freed; everything runs at once, in the order of the calls.
unsafe impl Driver for Emulator {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "emulator".into(),
            capability: self.options.capability,
            multiprocessors: self.options.multiprocessors,
            memory_bytes: self.options.memory_bytes,
            shared_bytes: if self.options.capability == (9, 0) { 227 << 10 } else { 99 << 10 },
        }
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.options.memory_bytes - self.enter()?.used_bytes)
    }

    fn alloc(&self, bytes: u64) -> Result<Ptr> {
        let mut inner = self.enter_now("alloc")?;
        let free = self.options.memory_bytes - inner.used_bytes;
        if bytes > free {
            return Err(Error::OutOfMemory { requested: bytes, free });
        }
        let bytes = bytes as usize;
        let rounded = bytes.next_multiple_of(16);
        let data_bytes = rounded.next_multiple_of(PAGE);
        let map_bytes = data_bytes + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping; its inner pages become accessible.
        let map = unsafe {
            let map = libc::mmap(std::ptr::null_mut(), map_bytes, libc::PROT_NONE, flags, -1, 0);
            if map == libc::MAP_FAILED {
                return Err(Error::OutOfMemory { requested: bytes as u64, free });
            }
            let data = map.byte_add(PAGE);
            let opened = libc::mprotect(data, data_bytes, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(opened, 0, "mprotect of {data_bytes} bytes");
            map as usize
        };
        let start = map + PAGE + data_bytes - rounded;
        // SAFETY: inside the mapping.
        unsafe {
            std::ptr::write_bytes(start as *mut u8, FRESH, bytes);
            std::ptr::write_bytes((start + bytes) as *mut u8, CANARY, rounded - bytes);
        }
        inner.used_bytes += bytes as u64;
        inner.buffers.insert(start as Ptr, Buffer { map, map_bytes, bytes });
        Ok(start as Ptr)
    }

    unsafe fn free(&self, at: Ptr) {
        let mut inner = lock(&self.inner);
        let buffer = inner.buffers.remove(&at).expect("a buffer is freed once");
        inner.used_bytes -= buffer.bytes as u64;
        // SAFETY: ours, and not used any more.
        unsafe { libc::munmap(buffer.map as *mut c_void, buffer.map_bytes) };
    }

    unsafe fn upload(&self, to: Ptr, from: &[u8]) -> Result<()> {
        let mut inner = self.enter_now("upload")?;
        inner.check("upload", to, from.len() as u64)?;
        inner.uploads += 1;
        // SAFETY: it lies in a buffer.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: Ptr) -> Result<()> {
        let mut inner = self.enter_now("download")?;
        inner.check("download", from, to.len() as u64)?;
        // SAFETY: it lies in a buffer.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        let mut hasher = DefaultHasher::new();
        (inner.used.downloads, &to).hash(&mut hasher);
        inner.used.downloads = hasher.finish();
        Ok(())
    }

    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: u64) -> Result<()> {
        self.enter()?.submit(&self.options, Recorded::Copy(to, from, bytes))
    }

    unsafe fn fill(&self, at: Ptr, byte: u8, bytes: u64) -> Result<()> {
        self.enter()?.submit(&self.options, Recorded::Fill(at, byte, bytes))
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, params: &[u8]) -> Result<()> {
        self.enter()?.submit(&self.options, Recorded::Launch(kernel, grid, params.to_vec()))
    }

    fn synchronize(&self) -> Result<()> {
        self.enter_now("synchronize").map(drop)
    }

    fn tensor_map(&self, at: Ptr, shape: TensorShape) -> Result<TensorMap> {
        let mut inner = self.enter()?;
        inner.used.tensor_maps += 1;
        inner.check(
            "tensor_map",
            at,
            shape.row_bytes * (shape.rows - 1) + shape.cols * shape.element_bytes as u64,
        )?;
        let TensorShape { element_bytes, rows, cols, row_bytes, box_rows, box_cols } = shape;
        let sizes = [element_bytes, box_rows, box_cols].map(u64::from);
        let good = self.options.capability == (9, 0)
            && at.is_multiple_of(16)
            && row_bytes.is_multiple_of(16)
            && row_bytes >= cols * sizes[0]
            && (1..=256).contains(&box_rows)
            && sizes[2] * sizes[0] == 128;
        if !good {
            return Err(Error::driver("tensor_map", format!("{shape:?} at {at:#x}")));
        }
        let mut map = [0; 16];
        map[..8].copy_from_slice(&[TENSOR_MAP, at, rows, cols, row_bytes, sizes[1], sizes[2], sizes[0]]);
        Ok(TensorMap(map))
    }

    fn begin_capture(&self) -> Result<()> {
        self.enter_now("begin_capture")?.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<u64> {
        let mut inner = self.enter()?;
        let recorded =
            inner.capture.take().ok_or_else(|| Error::driver("end_capture", "nothing is recorded"))?;
        if let Some(Fault::Recording) = inner.fault {
            return Err(Error::driver("end_capture", "a planned fault"));
        }
        inner.next_graph += 1;
        let id = inner.next_graph;
        inner.graphs.insert(id, recorded);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: u64) -> Result<()> {
        let mut inner = self.enter_now("launch_graph")?;
        let Some(recorded) = inner.graphs.remove(&graph) else {
            return Err(Error::driver("launch_graph", "no such graph"));
        };
        let done = recorded.iter().try_for_each(|r| inner.run(&self.options, r));
        inner.graphs.insert(graph, recorded);
        done
    }

    fn free_graph(&self, graph: u64) {
        lock(&self.inner).graphs.remove(&graph);
    }
}

impl Inner {
    /// Runs it, or records it.
    fn submit(&mut self, options: &Options, work: Recorded) -> Result<()> {
        match &mut self.capture {
            Some(recorded) => {
                recorded.push(work);
                Ok(())
            }
            None => self.run(options, &work),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (_, buffer) in lock(&self.inner).buffers.drain() {
            // SAFETY: nobody has the device any more.
            unsafe { libc::munmap(buffer.map as *mut c_void, buffer.map_bytes) };
        }
    }
}
