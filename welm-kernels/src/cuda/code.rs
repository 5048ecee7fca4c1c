//! The device code that `build.rs` embeds, and what it runs on.
//!
//! A *cubin* is machine code.
//!
//! - Driver: a cubin of nvcc x.y needs a driver of CUDA x.0 or newer (minor-version compatibility). So a driver of CUDA
//!   12 cannot load one of nvcc 13.
//! - Device: it needs the same major capability, and the same or a higher minor one: `sm_100` runs on 10.0 and 10.3,
//!   `sm_120` on 12.0 and 12.1. `sm_90a` runs on 9.0 only.
//!
//! *PTX* is compiled by the driver, for any capability from 8.0 on. PTX of nvcc x.y has a version that drivers older than
//! CUDA x.y do not know. So a device without a cubin needs a driver of CUDA x.y.
//!
//! The kernels that launchers choose for capability 9.0 exist for `sm_90a` only, and PTX does not have them. With
//! `Device::without_hopper` they are not chosen, and 9.0 is like any other capability.

/// Device code and its origin.
pub(super) struct Code {
    /// CUDA version of nvcc.
    pub(super) release: (u32, u32),
    /// `sm_` names, without the prefix.
    pub(super) cubins: &'static [&'static str],
    /// Whether there is PTX of `compute_80`.
    pub(super) ptx: bool,
    /// The stems of the files of `cuda/`, and their fatbins.
    pub(super) files: &'static [(&'static str, &'static Aligned<[u8]>)],
}

/// Aligned bytes. The driver reads a fatbin as structs; plain bytes would be aligned to 1.
#[repr(C, align(64))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

pub(super) static CODE: Code = include!(concat!(env!("OUT_DIR"), "/code.rs"));

impl Code {
    /// The reason why a device of this capability, or a driver of this CUDA version, can't run the code. `hopper` says
    /// whether the kernels of `sm_90a` are used on 9.0.
    pub(super) fn check(
        &self,
        capability: (u32, u32),
        driver: (u32, u32),
        hopper: bool,
    ) -> Result<(), String> {
        let (major, minor) = capability;
        if major < 8 {
            return Err(format!("compute capability {major}.{minor}; 8.0 or newer is needed"));
        }
        let runs = |cubin: &&str| match cubin.strip_suffix('a') {
            Some(exact) => *exact == format!("{major}{minor}"),
            None => cubin.parse().is_ok_and(|n: u32| n / 10 == major && n % 10 <= minor),
        };
        let need = if hopper && capability == (9, 0) && !self.cubins.contains(&"90a") {
            return Err(format!("compute capability 9.0 needs sm_90a; {self}"));
        } else if self.cubins.iter().any(runs) {
            (self.release.0, 0)
        } else if self.ptx {
            self.release
        } else {
            return Err(format!("no device code for compute capability {major}.{minor}; {self}"));
        };
        if driver < need {
            let ((major, minor), (x, y)) = (need, driver);
            return Err(format!("the driver is of CUDA {x}.{y}; {major}.{minor} or newer is needed: {self}"));
        }
        Ok(())
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.release;
        let names = self.cubins.iter().map(|cubin| format!("sm_{cubin}"));
        let names: Vec<_> = names.chain(self.ptx.then(|| "PTX".to_owned())).collect();
        write!(f, "the device code was built by CUDA {major}.{minor} for {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&str] = &["80", "86", "89", "90a"];
    const NEWER: &[&str] = &["80", "86", "89", "90a", "100", "120"];

    fn code(release: (u32, u32), cubins: &'static [&'static str], ptx: bool) -> Code {
        Code { release, cubins, ptx, files: &[] }
    }

    #[test]
    fn cubins_run_with_every_driver_of_their_major_version() {
        let code = code((13, 4), ALL, true);
        for capability in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0)] {
            assert_eq!(code.check(capability, (13, 0), true), Ok(()), "{capability:?}");
            assert_eq!(code.check(capability, (14, 0), true), Ok(()), "{capability:?}");
            let error = code.check(capability, (12, 9), true).unwrap_err();
            let both = error.contains("of CUDA 12.9") && error.contains("by CUDA 13.4");
            assert!(both && error.contains("13.0 or newer"), "{error}");
        }
    }

    #[test]
    fn ptx_needs_a_driver_that_knows_its_version() {
        let code = code((13, 4), ALL, true);
        for capability in [(10, 0), (12, 0), (9, 1)] {
            assert_eq!(code.check(capability, (13, 4), true), Ok(()), "{capability:?}");
            let error = code.check(capability, (13, 3), true).unwrap_err();
            assert!(error.contains("13.4 or newer"), "{error}");
        }
        // The same holds for an old device without a cubin.
        let narrow = super::tests::code((13, 4), &["90a"], true);
        assert_eq!(narrow.check((8, 6), (13, 4), true), Ok(()));
        assert!(narrow.check((8, 6), (13, 0), true).is_err());
    }

    /// 10.x and 12.x are two generations. Neither runs the machine code of the other.
    #[test]
    fn cubins_of_blackwell_need_no_ptx() {
        let code = code((13, 4), NEWER, false);
        for capability in [(9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert_eq!(code.check(capability, (13, 0), true), Ok(()), "{capability:?}");
        }
        let missing = code.check((11, 0), (13, 4), true).unwrap_err();
        assert!(missing.contains("no device code for compute capability 11.0"), "{missing}");
        assert!(missing.ends_with("sm_90a, sm_100, sm_120"), "{missing}");
        let only = |cubins| super::tests::code((13, 4), cubins, false);
        for (code, others) in [(only(&["100"]), [(12, 0), (12, 1)]), (only(&["120"]), [(10, 0), (10, 3)])] {
            for capability in others {
                assert!(code.check(capability, (13, 4), true).is_err(), "{code} on {capability:?}");
            }
        }
    }

    /// Machine code of `sm_90a` is still that of 9.0, but no longer needed.
    #[test]
    fn without_its_own_kernels_hopper_is_as_any_other() {
        let check = |cubins, ptx, driver| code((13, 4), cubins, ptx).check((9, 0), driver, false);
        assert_eq!(check(ALL, false, (13, 0)), Ok(()));
        assert_eq!(check(&["80"], true, (13, 4)), Ok(()));
        let old = check(&["80"], true, (13, 3)).unwrap_err();
        assert!(old.contains("13.4 or newer is needed"), "{old}");
        let missing = check(&["80", "89"], false, (13, 4)).unwrap_err();
        assert!(missing.contains("no device code for compute capability 9.0"), "{missing}");
    }

    #[test]
    fn devices_without_code_are_refused() {
        let cases = [
            (code((13, 0), ALL, true), (7, 5), "8.0 or newer"),
            (code((13, 0), ALL, false), (10, 0), "no device code for compute capability 10.0"),
            (code((13, 0), &["86"], false), (8, 0), "no device code for compute capability 8.0"),
            (code((13, 0), &["90a"], false), (9, 1), "no device code for compute capability 9.1"),
            // PTX would load, but does not have the kernels that the launchers choose.
            (code((13, 0), &["80", "89"], true), (9, 0), "needs sm_90a"),
        ];
        for (code, capability, reason) in cases {
            let error = code.check(capability, (13, 0), true).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn every_source_is_embedded() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let sources = paths.filter(|path| path.extension().is_some_and(|e| e == "cu"));
        let mut stems: Vec<_> = sources.map(|path| path.file_stem().unwrap().to_owned()).collect();
        stems.sort();
        assert_eq!(CODE.files.iter().map(|(stem, _)| *stem).collect::<Vec<_>>(), stems);
        for (stem, fatbin) in CODE.files {
            // The magic number of a fatbin.
            assert_eq!(fatbin.0[..4], 0xba55_ed50_u32.to_le_bytes(), "{stem}");
            assert!(fatbin.0.as_ptr().cast::<u64>().is_aligned(), "{stem}");
        }
    }
}
