//! Questions that are asked before there is a context: whether there is a usable libcuda, and what the device is.
//!
//! cudarc panics if libcuda or one of its functions is missing. So both are checked first.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys;

use super::code::CODE;
use super::failure::reached;
use crate::driver::DeviceInfo;
use crate::error::{Error, Result};

/// The functions of libcuda that must exist.
const FUNCTIONS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuTensorMapEncodeTiled",
    "cuThreadExchangeStreamCaptureMode",
];

/// The reason why libcuda can't be used, if there is one.
pub(super) fn find_library() -> Result<(), String> {
    // SAFETY: opens a library; libcuda does nothing until it is called.
    if !unsafe { sys::is_culib_present() } {
        return Err("libcuda, a part of the NVIDIA driver, was not found".to_owned());
    }
    for name in FUNCTIONS {
        if !has(name) {
            return Err(format!("libcuda has no {name}: the driver is too old; {CODE}"));
        }
    }
    Ok(())
}

/// Whether libcuda, which has been found, has a function.
pub(super) fn has(name: &str) -> bool {
    // SAFETY: the address is not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok()
}

/// What a device is.
pub(super) fn info_of(device: sys::CUdevice) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute_enum::*;
    let mut name = [0 as c_char; 256];
    // SAFETY: writes that many bytes at most, with a zero.
    let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device) };
    reached("cuDeviceGetName", result)?;
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory = 0;
    // SAFETY: gives a number.
    reached("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: gives a number.
        let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
        reached("cuDeviceGetAttribute", result)?;
        Ok::<_, Error>(value.max(0) as u32)
    };
    Ok(DeviceInfo {
        name,
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::FUNCTIONS;

    #[test]
    fn every_function_that_is_called_is_looked_for() {
        let sources = [
            include_str!("../cuda.rs"),
            include_str!("failure.rs"),
            include_str!("kernels.rs"),
            // Without the tests.
            include_str!("probe.rs").split("#[cfg(test)]").next().unwrap(),
        ];
        let mut called = BTreeSet::new();
        for name in sources.iter().flat_map(|source| source.split("sys::cu").skip(1)) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            called.insert(format!("cu{}", &name[..end]));
        }
        // The library itself, and a function whose existence is checked where it is called.
        assert!(called.remove("culib") && called.remove("cuFuncGetParamInfo"));
        assert_eq!(called, FUNCTIONS.iter().map(|name| name.to_string()).collect());
    }
}
