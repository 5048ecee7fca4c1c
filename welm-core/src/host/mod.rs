//! Everything about the process and the machine that the engine runs in: memory and threads within the limits of
//! machine, container and process; forks; panics that must not be printed; files that are truncated while they are
//! mapped; how a thread rounds; and the exchange of two folders.

pub(crate) mod bus;
pub(crate) mod cgroup;
pub(crate) mod exchange;
pub(crate) mod float;
pub(crate) mod fork;
pub(crate) mod memory;
pub(crate) mod panics;
pub(crate) mod quiet;
pub(crate) mod threads;
