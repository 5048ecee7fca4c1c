//! What the process around the engine allows, and what it may do meanwhile: memory and threads within the limits of
//! machine, container and process; a `fork`; a panic of foreign code that nobody should see; a file that loses its end;
//! two folders that change places.

pub(crate) mod bus;
pub(crate) mod cgroup;
pub(crate) mod exchange;
pub(crate) mod fork;
pub(crate) mod memory;
pub(crate) mod panics;
pub(crate) mod quiet;
pub(crate) mod threads;
