//! The CUDA driver as a [`Driver`]: one device, its primary context, one stream.
//!
//! * Only the bindings of cudarc are used. Its safe layer may panic, and keeps events for every buffer; a device with
//!   one stream does not need them.
//! * Memory comes from `cuMemAlloc`. It is slow, but everything is allocated when a model is loaded. The pool of
//!   `cuMemAllocAsync` would keep freed memory, and the plan for a model needs to know how much is really free.
//!   `cuMemFree` waits for the work that is queued, so that no queued kernel loses its memory.
//! * Uploads go through pinned memory and return at once. An asynchronous copy from pageable memory may still be
//!   reading it when the call returns. Waiting for that would stop the device for each small upload.
//! * The first error that destroys the context is kept, and every later call returns it. The call that reports an error
//!   is often a later one than the call that caused it.
//! * If the calling thread had another context, it is current again when a call returns.

mod code;
mod failure;
mod kernels;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Display;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use self::code::CODE;
use self::failure::{describe, is_fatal, reached};
use self::kernels::Loaded;
use crate::driver::{DeviceInfo, Driver, Grid, Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result};

/// Bytes of pinned memory for uploads. Larger uploads do not use it. The tables of a step are far smaller.
const STAGING_BYTES: usize = 4 << 20;

/// A device, its primary context and a stream of it.
pub(crate) struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    info: DeviceInfo,
    /// CUDA version of the driver.
    version: (u32, u32),
    /// The first error that destroyed the context.
    lost: OnceLock<String>,
    host: Mutex<Host>,
    loaded: Mutex<Loaded>,
    graphs: Mutex<Graphs>,
}

/// State of the calls that work differently during a recording.
struct Host {
    /// Pinned, `STAGING_BYTES`; copies in progress may read the first `used` bytes.
    staging: *mut u8,
    used: usize,
    recording: bool,
    /// Freed during the recording.
    unfreed: Vec<Ptr>,
}

#[derive(Default)]
struct Graphs {
    next: u64,
    executables: HashMap<u64, sys::CUgraphExec>,
}

// SAFETY: handles of the driver may be used from any thread, its calls are thread-safe once the context is
// current, and locks protect the rest.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// While it lives, a context is current on this thread.
struct Current {
    /// What was current before, if it has to come back.
    previous: sys::CUcontext,
}

impl Drop for Current {
    fn drop(&mut self) {
        if !self.previous.is_null() {
            // SAFETY: it was current when the call began.
            let _ = unsafe { sys::cuCtxSetCurrent(self.previous) };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics with a lock held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// See [`crate::Device::open`]; `hopper` says whether the kernels of `sm_90a` will be used on a device of
    /// capability 9.0.
    pub(crate) fn open(ordinal: usize, hopper: bool) -> Result<Cuda> {
        probe::find_library().map_err(Error::NoDevice)?;
        // SAFETY: the first call, and it has no other conditions.
        reached("cuInit", unsafe { sys::cuInit(0) })?;
        let (mut version, mut count, mut device) = (0, 0, 0);
        // SAFETY: gives a number.
        reached("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        // SAFETY: gives a number.
        reached("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        let index = i32::try_from(ordinal).ok().filter(|index| *index < count);
        let no_such = || Error::NoDevice(format!("device {ordinal}: expected one of {count}, from 0 on"));
        // SAFETY: gives a device; the ordinal is in range.
        reached("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, index.ok_or_else(no_such)?) })?;

        let info = probe::info_of(device)?;
        let version = version.max(0) as u32;
        let version = (version / 1000, version % 1000 / 10);
        CODE.check(info.capability, version, hopper)
            .map_err(|reason| Error::NoDevice(format!("{}: {reason}", info.name)))?;

        let mut context = null_mut();
        // SAFETY: gives a context; `drop` releases it.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        reached("cuDevicePrimaryCtxRetain", result)?;
        let host = Host { staging: null_mut(), used: 0, recording: false, unfreed: Vec::new() };
        let mut cuda = Cuda {
            device,
            context,
            stream: null_mut(),
            info,
            version,
            lost: OnceLock::new(),
            host: Mutex::new(host),
            loaded: Mutex::default(),
            graphs: Mutex::default(),
        };
        cuda.prepare()?;
        tracing::info!(device = ordinal, info = ?cuda.info, driver = ?version, "CUDA device");
        Ok(cuda)
    }

    /// The rest of `open`. If it fails, `drop` frees what was made so far.
    fn prepare(&mut self) -> Result<()> {
        let _current = self.enter()?;
        // Non-blocking: this stream does not wait for what the process runs on the default stream.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: gives a stream.
        let result = unsafe { sys::cuStreamCreate(&mut self.stream, flags) };
        self.check("cuStreamCreate", result)?;
        let mut staging = null_mut();
        // SAFETY: gives memory.
        let result = unsafe { sys::cuMemHostAlloc(&mut staging, STAGING_BYTES, 0) };
        self.check("cuMemHostAlloc", result)?;
        lock(&self.host).staging = staging.cast();
        // If the driver cannot read the device code, `open` fails, and not a step of a model later.
        if let Some((file, _)) = CODE.files.iter().min_by_key(|(_, fatbin)| fatbin.0.len()) {
            self.module(&mut lock(&self.loaded).modules, file)?;
        }
        Ok(())
    }

    fn check(&self, call: impl Display, result: CUresult) -> Result<()> {
        if let CUresult::CUDA_SUCCESS = result {
            return Ok(());
        }
        let reason = describe(result);
        if !is_fatal(result) {
            return Err(Error::driver(call, reason));
        }
        let first = self.lost.get_or_init(|| {
            let reason = format!("{call}: {reason} (here or before)");
            tracing::error!(%reason, "CUDA context lost");
            reason
        });
        Err(Error::ContextLost(first.clone()))
    }

    /// Makes the context current, unless it is lost.
    fn enter(&self) -> Result<Current> {
        if let Some(reason) = self.lost.get() {
            return Err(Error::ContextLost(reason.clone()));
        }
        let mut previous = null_mut();
        // SAFETY: gives a context, or null.
        self.check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut previous) })?;
        if previous == self.context {
            return Ok(Current { previous: null_mut() });
        }
        // SAFETY: retained until `drop`.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        Ok(Current { previous })
    }

    /// For calls that cannot be recorded, or whose memory could be gone when the recording is repeated.
    fn not_recording(&self, call: &str) -> Result<MutexGuard<'_, Host>> {
        let host = lock(&self.host);
        if host.recording { Err(Error::driver(call, "not while launches are recorded")) } else { Ok(host) }
    }

    /// Waits for the stream; after that nothing reads the staging memory.
    fn wait(&self, host: &mut Host) -> Result<()> {
        // SAFETY: our stream.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })?;
        host.used = 0;
        Ok(())
    }

    fn free_now(&self, at: Ptr) {
        // SAFETY: `Driver::free`'s caller: from `alloc`, and used no more.
        if let Err(error) = self.check("cuMemFree", unsafe { sys::cuMemFree_v2(at) }) {
            tracing::error!(%error, "device memory is not freed");
        }
    }
}

// SAFETY: memory of `cuMemAlloc` stays until `cuMemFree`, and a stream keeps the order of the calls.
unsafe impl Driver for Cuda {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn free_bytes(&self) -> Result<u64> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: gives two numbers.
        self.check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    fn alloc(&self, bytes: u64) -> Result<Ptr> {
        let _current = self.enter()?;
        let _host = self.not_recording("cuMemAlloc")?;
        let mut at = 0;
        // SAFETY: gives memory.
        let result = unsafe { sys::cuMemAlloc_v2(&mut at, usize::try_from(bytes).unwrap_or(usize::MAX)) };
        if let CUresult::CUDA_ERROR_OUT_OF_MEMORY = result {
            return Err(Error::OutOfMemory { requested: bytes, free: self.free_bytes()? });
        }
        self.check("cuMemAlloc", result)?;
        Ok(at)
    }

    unsafe fn free(&self, at: Ptr) {
        // The memory of a lost context is gone already.
        let Ok(_current) = self.enter() else { return };
        let mut host = lock(&self.host);
        if host.recording { host.unfreed.push(at) } else { self.free_now(at) }
    }

    unsafe fn upload(&self, to: Ptr, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let _current = self.enter()?;
        let mut host = self.not_recording("cuMemcpyHtoD")?;
        if from.len() > STAGING_BYTES {
            // SAFETY: the caller's room at `to`; `from` lives until the wait is over.
            let result =
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream) };
            self.check("cuMemcpyHtoD", result)?;
            return self.wait(&mut host);
        }
        if from.len() > STAGING_BYTES - host.used {
            self.wait(&mut host)?;
        }
        // SAFETY: within the staging memory, and no copy in progress reads this part.
        let staged = unsafe { host.staging.add(host.used) };
        // SAFETY: as above, and `from` is not in it.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), staged, from.len()) };
        host.used = STAGING_BYTES.min((host.used + from.len()).next_multiple_of(64));
        // SAFETY: the caller's room at `to`; this part of the staging memory stays as it is until a wait.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, staged.cast(), from.len(), self.stream) };
        self.check("cuMemcpyHtoD", result)
    }

    unsafe fn download(&self, to: &mut [u8], from: Ptr) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let _current = self.enter()?;
        let mut host = self.not_recording("cuMemcpyDtoH")?;
        // SAFETY: the caller's bytes at `from`; `to` lives until the wait is over.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream) };
        self.check("cuMemcpyDtoH", result)?;
        self.wait(&mut host)
    }

    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        // SAFETY: the caller's bytes at both.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.stream) };
        self.check("cuMemcpyDtoD", result)
    }

    unsafe fn fill(&self, at: Ptr, byte: u8, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        // SAFETY: the caller's bytes at `at`.
        let result = unsafe { sys::cuMemsetD8Async(at, byte, bytes as usize, self.stream) };
        self.check("cuMemsetD8", result)
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, params: &[u8]) -> Result<()> {
        let _current = self.enter()?;
        let function = self.function(kernel, params.len(), grid.shared_bytes)?;
        let (Grid { blocks: [x, y, z], threads, shared_bytes }, stream) = (grid, self.stream);
        let mut argument = params.as_ptr().cast_mut().cast();
        // SAFETY: the driver copies the parameter, whose size is the function's; its content is the caller's.
        let result = unsafe {
            let (arguments, extra) = (&raw mut argument, null_mut());
            sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared_bytes, stream, arguments, extra)
        };
        self.check(format_args!("{kernel} with {grid:?}"), result)
    }

    fn synchronize(&self) -> Result<()> {
        let _current = self.enter()?;
        self.wait(&mut *self.not_recording("cuStreamSynchronize")?)
    }

    fn tensor_map(&self, at: Ptr, shape: TensorShape) -> Result<TensorMap> {
        const OPERATION: &str = "tensor_map";
        let (major, minor) = self.info.capability;
        if major < 9 {
            let reason = format!("expected capability 9.0 or newer, got {major}.{minor}");
            return Err(Error::Unsupported { operation: OPERATION, reason });
        }
        let element = match shape.element_bytes {
            1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            n => {
                let reason = format!("expected elements of 1 or 2 bytes, got {n}");
                return Err(Error::Unsupported { operation: OPERATION, reason });
            }
        };
        let _current = self.enter()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // Columns come first, because they are contiguous.
        let (sizes, row_bytes) = ([shape.cols, shape.rows], [shape.row_bytes]);
        let (box_sizes, steps) = ([shape.box_cols, shape.box_rows], [1, 1]);
        // SAFETY: reads two sizes, one stride, two box sizes and two steps; nothing at the address.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                2,
                std::ptr::without_provenance_mut(at as usize),
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                box_sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                // 256 bytes, because the next box of a row is read soon after this one.
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, // zeros
            )
        };
        self.check(format_args!("cuTensorMapEncodeTiled of {shape:?} at {at:#x}"), result)?;
        Ok(TensorMap(map.opaque))
    }

    fn begin_capture(&self) -> Result<()> {
        let _current = self.enter()?;
        let mut host = self.not_recording("cuStreamBeginCapture")?;
        // Other threads may go on with their own streams and memory.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our stream.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        self.check("cuStreamBeginCapture", result)?;
        host.recording = true;
        Ok(())
    }

    fn end_capture(&self) -> Result<u64> {
        let _current = self.enter()?;
        let mut graph = null_mut();
        let result = {
            let mut host = lock(&self.host);
            // SAFETY: our stream; gives a graph. Without a recording it is an error.
            let result = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
            // After any other error it has ended, too.
            host.recording = matches!(result, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
            if !host.recording {
                host.unfreed.drain(..).for_each(|at| self.free_now(at));
            }
            result
        };
        self.check("cuStreamEndCapture", result)?;
        let mut executable = null_mut();
        // SAFETY: gives an executable graph.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: ours, and not used any more.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        self.check("cuGraphInstantiate", result)?;
        let mut graphs = lock(&self.graphs);
        let id = graphs.next;
        graphs.next += 1;
        graphs.executables.insert(id, executable);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: u64) -> Result<()> {
        let _current = self.enter()?;
        // Locked during the call: graphs are not thread-safe.
        let graphs = lock(&self.graphs);
        let executable = graphs.executables.get(&graph);
        let executable = executable.ok_or_else(|| Error::driver("cuGraphLaunch", "no such recording"))?;
        // SAFETY: ours; the caller keeps the memory that it uses.
        let result = unsafe { sys::cuGraphLaunch(*executable, self.stream) };
        self.check("cuGraphLaunch", result)
    }

    fn free_graph(&self, graph: u64) {
        let Some(executable) = lock(&self.graphs).executables.remove(&graph) else { return };
        let Ok(_current) = self.enter() else { return };
        // SAFETY: ours, and not used any more; if it is running, the driver frees it afterwards.
        let _ = unsafe { sys::cuGraphExecDestroy(executable) };
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let mut previous = null_mut();
        // With a lost context some of these calls fail. That does no harm: its memory is freed with it.
        // SAFETY: all of it is ours and not used any more. The last call ends the context if nobody else in the process
        // has it, so the context must not stay current.
        unsafe {
            let _ = sys::cuCtxGetCurrent(&mut previous);
            let _ = sys::cuCtxSetCurrent(self.context);
            if !self.stream.is_null() {
                let _ = sys::cuStreamSynchronize(self.stream);
            }
            for executable in lock(&self.graphs).executables.values() {
                let _ = sys::cuGraphExecDestroy(*executable);
            }
            for module in lock(&self.loaded).modules.values() {
                let _ = sys::cuModuleUnload(*module);
            }
            let host = lock(&self.host);
            for at in &host.unfreed {
                let _ = sys::cuMemFree_v2(*at);
            }
            if !host.staging.is_null() {
                let _ = sys::cuMemFreeHost(host.staging.cast());
            }
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuCtxSetCurrent(if previous == self.context { null_mut() } else { previous });
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
