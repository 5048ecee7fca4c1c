//! C interface of the welm engine: none yet. It exports nothing until then.
