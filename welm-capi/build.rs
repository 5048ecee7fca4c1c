//! Sets the soname of `libwelm.so`. Versions with the same soname are compatible. As long as the first number of the
//! version is 0, the second one decides.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name| env::var(name).expect("cargo sets it");
    if var("CARGO_CFG_TARGET_OS") == "linux" {
        let (major, minor) = (var("CARGO_PKG_VERSION_MAJOR"), var("CARGO_PKG_VERSION_MINOR"));
        let series = if major == "0" { format!("0.{minor}") } else { major };
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libwelm.so.{series}");
    }
}
