//! Modules are loaded when one of their kernels is first asked for, kernels when they are first launched.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};

use super::code::CODE;
use super::failure::{describe, is_foreign_code};
use super::{Cuda, lock, probe};
use crate::driver::Kernel;
use crate::error::{Error, Result};

/// Bytes of dynamic shared memory that a kernel may have without asking for more.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// From this many bytes on, a kernel asks for the largest carve-out of shared memory. Such kernels copy their operands
/// to shared memory, and a multiprocessor holds several of their blocks only with the largest carve-out (three of 32
/// KiB, or two of 97 KiB). Kernels with less shared memory read through the L1 cache, which the carve-out makes
/// smaller.
const STAGED_BYTES: u32 = 32 << 10;

/// Modules by the stem of their file.
pub(super) type Modules = HashMap<&'static str, sys::CUmodule>;

/// What has been loaded.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) modules: Modules,
    functions: HashMap<Kernel, Function>,
}

struct Function {
    handle: sys::CUfunction,
    /// Bytes of its only parameter, if the driver can say.
    param_bytes: Option<usize>,
    /// Whether it may have more than `DEFAULT_SHARED_BYTES`.
    raised: bool,
    /// Whether it has asked for the largest carve-out.
    staged: bool,
}

/// While this value exists, this thread may load code although it records launches.
struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    fn new() -> Self {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps the mode of this thread.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed(mode)
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

impl Cuda {
    pub(super) fn module(&self, modules: &mut Modules, file: &'static str) -> Result<sys::CUmodule> {
        if let Some(module) = modules.get(file) {
            return Ok(*module);
        }
        let found = CODE.files.iter().find(|(stem, _)| *stem == file);
        let (_, fatbin) =
            found.ok_or_else(|| Error::driver(format_args!("{file}.cu"), "not in the device code"))?;
        let mut module = null_mut();
        // SAFETY: a fatbin says how long it is; nvcc made this one.
        let result = unsafe { sys::cuModuleLoadData(&mut module, fatbin.0.as_ptr().cast()) };
        if is_foreign_code(result) {
            let ((major, minor), reason) = (self.version, describe(result));
            let reason = format!("{file}.cu: {reason}; the driver is of CUDA {major}.{minor}, {CODE}");
            return Err(Error::NoDevice(reason));
        }
        self.check(format_args!("{file}.cu"), result)?;
        modules.insert(file, module);
        Ok(module)
    }

    fn load(&self, modules: &mut Modules, kernel: Kernel) -> Result<Function> {
        let _relaxed = Relaxed::new();
        let module = self.module(modules, kernel.file)?;
        let name = CString::new(kernel.name).map_err(|error| Error::launch(kernel, error))?;
        let mut handle = null_mut();
        // SAFETY: gives a function; the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&mut handle, module, name.as_ptr()) };
        if let CUresult::CUDA_ERROR_NOT_FOUND = result {
            let (major, minor) = self.info.capability;
            return Err(Error::launch(kernel, format!("not there for capability {major}.{minor}; {CODE}")));
        }
        self.check(kernel, result)?;
        let mut param_bytes = None;
        // Since CUDA 12.4.
        if probe::has("cuFuncGetParamInfo") {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: gives two numbers.
            let result = unsafe { sys::cuFuncGetParamInfo(handle, 0, &mut offset, &mut bytes) };
            self.check(kernel, result)?;
            param_bytes = Some(bytes);
        }
        Ok(Function { handle, param_bytes, raised: false, staged: false })
    }

    /// A kernel that takes this many bytes of parameters and may have this many bytes of shared memory.
    pub(super) fn function(
        &self,
        kernel: Kernel,
        params_len: usize,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction> {
        let mut loaded = lock(&self.loaded);
        let Loaded { modules, functions } = &mut *loaded;
        let function = match functions.entry(kernel) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.load(modules, kernel)?),
        };
        if let Some(bytes) = function.param_bytes.filter(|bytes| *bytes != params_len) {
            let reason = format!("expected {bytes} bytes of parameters, got {params_len}");
            return Err(Error::launch(kernel, reason));
        }
        if shared_bytes > DEFAULT_SHARED_BYTES && !function.raised {
            use sys::CUfunction_attribute_enum::*;
            let mut fixed = 0;
            // SAFETY: gives a number.
            let result = unsafe {
                sys::cuFuncGetAttribute(&mut fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.handle)
            };
            self.check(kernel, result)?;
            let most = self.info.shared_bytes as i32 - fixed;
            let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: sets a number.
            let result = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, most) };
            self.check(kernel, result)?;
            function.raised = true;
        }
        if shared_bytes >= STAGED_BYTES && !function.staged {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            let share = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
            // SAFETY: sets a number.
            let result = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, share) };
            self.check(kernel, result)?;
            function.staged = true;
        }
        Ok(function.handle)
    }
}
