//! libcuda, looked for before it is called: cudarc panics where it, or a function of it, is missing.

use cudarc::driver::sys;

/// All functions of libcuda that are called here, but for `cuFuncGetParamInfo` (CUDA 12.4).
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
pub(super) fn find() -> Result<(), String> {
    // SAFETY: opens a library; libcuda does nothing until it is called.
    if !unsafe { sys::is_culib_present() } {
        return Err("libcuda, a part of the NVIDIA driver, was not found".to_owned());
    }
    for name in FUNCTIONS {
        // SAFETY: the address is not called.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(format!("libcuda has no {name}: the driver is too old"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::FUNCTIONS;

    #[test]
    fn every_function_that_is_called_is_looked_for() {
        let sources = [include_str!("../cuda.rs"), include_str!("failure.rs"), include_str!("kernels.rs")];
        let mut called = BTreeSet::new();
        for name in sources.iter().flat_map(|source| source.split("sys::cu").skip(1)) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            called.insert(format!("cu{}", &name[..end]));
        }
        // It is called only from its CUDA version on.
        assert!(called.remove("cuFuncGetParamInfo"));
        assert_eq!(called, FUNCTIONS.iter().map(|name| name.to_string()).collect());
    }
}
