//! How a `.cu` file becomes a shared library of the emulator; used by `build.rs` and by the planted faults.

use std::path::Path;
use std::process::Command;

/// Compiles `source` with the headers of `cuda` (the kernels' own folder, or a changed copy) to `library`, with
/// `-O<level>`: `2` for kernels that run often, `g` for kernels that run once.
///
/// Misaligned accesses, and accesses out of the bounds of local arrays, end in a trap. Unlike nvcc, the compiler does not
/// fuse a product and a sum where the source has no `fmaf`. So source whose bits matter has to write `fmaf`.
pub fn compile(
    source: &Path,
    cuda: &Path,
    emulator: &Path,
    library: &Path,
    level: &str,
) -> Result<(), String> {
    let mut gxx = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    // The emulator's headers come first, because its ptx.cuh replaces that of the kernels.
    gxx.arg("-I").arg(emulator).arg("-I").arg(cuda);
    gxx.args(["-x", "c++", "-std=c++17", "-g1", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden"]);
    gxx.arg(format!("-O{level}"));
    gxx.args(["-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fno-strict-aliasing"]);
    gxx.args(["-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"]);
    gxx.args(["-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"]);
    gxx.arg(source).arg("-o").arg(library);
    let output = gxx.output().map_err(|e| format!("{gxx:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr)))
}
