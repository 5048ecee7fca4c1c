//! Programs that use welm; each file of this folder is one.
