//! Which errors of the driver leave the context usable.

use std::ffi::{CStr, c_char};
use std::ptr::null;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{Error, Result};

/// The driver's words for an error.
pub(super) fn describe(result: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = null();
        // SAFETY: gives a constant string, or null for what the driver does not know.
        let _ = unsafe { get(result, &mut text) };
        // SAFETY: as above.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
    };
    let name = text(sys::cuGetErrorName).unwrap_or("an error without a name".into());
    match text(sys::cuGetErrorString) {
        Some(meaning) => format!("{name}, {meaning}"),
        None => name.into_owned(),
    }
}

/// Whether the context cannot be used any more. True for errors that the driver documents as needing a new process, for
/// those that say that the context is gone, and for the unknown error (CUDA_ERROR_UNKNOWN), to be on the safe side.
pub(super) fn is_fatal(result: CUresult) -> bool {
    use CUresult::*;
    // A match, not a conversion to numbers: a newer driver may return a value that the type does not have, and a
    // conversion would let the compiler assume that it has it.
    matches!(
        result,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_INVALID_CONTEXT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_MPS_RPC_FAILURE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

/// Whether the driver cannot use the device code itself, as opposed to having no memory for it.
pub(super) fn is_foreign_code(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_INVALID_IMAGE
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_INVALID_PTX
            | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUDA_ERROR_INVALID_SOURCE
    )
}

/// Checks a call that is made before there is a context: a failure means that there is no usable device.
pub(super) fn reached(call: &str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(Error::NoDevice(format!("{call}: {}", describe(result)))),
    }
}
