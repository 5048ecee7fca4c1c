//! A model's file, mapped: read where it lies, and told apart from zeros if it loses its end meanwhile.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::host::bus::{self, Watched};

/// A file's bytes.
#[derive(Debug)]
pub(crate) struct FileMap {
    path: PathBuf,
    /// Goes before the map, so that what takes the map's place is not watched.
    watched: Option<Watched>,
    map: Mmap,
}

impl FileMap {
    /// Maps `path` read-only. Anything but a non-empty regular file is an error.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        // Before opening: opening a named pipe would wait for a writer.
        let info = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !info.is_file() {
            return Err(Error::io(path, "expected a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the mapping is private to reads, and the file is not modified while it is mapped; nothing can
        // enforce the latter, so it is a documented requirement on whoever loads a model (see the module `weights`).
        // If it is truncated all the same, reads see zeros, and `check` tells.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| match e.kind() {
            io::ErrorKind::OutOfMemory => {
                Error::allocation(format!("the map of {}", path.display()), info.len() as usize, e)
            }
            _ => Error::io(path, e),
        })?;
        if map.is_empty() {
            return Err(Error::file(path, "the file is empty"));
        }
        let watched = Some(Watched::new(&map));
        Ok(Arc::new(FileMap { path: path.to_path_buf(), watched, map }))
    }

    /// Whether what was read from the file was the file.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if a part could not be read, which then was taken for zeros.
    fn check(&self) -> Result<()> {
        if self.watched.as_ref().is_some_and(Watched::is_hit) {
            let reason = format!(
                "expected {} bytes as when it was mapped, but a part cannot be read any more: the file was truncated \
                 while it was in use, or its device failed",
                self.map.len()
            );
            return Err(Error::file(&self.path, reason));
        }
        Ok(())
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
impl From<Mmap> for FileMap {
    fn from(map: Mmap) -> Self {
        FileMap { path: PathBuf::new(), watched: None, map }
    }
}

/// The files that something was read from. They stay mapped only as long as others read them.
#[derive(Debug, Default)]
pub(crate) struct Files {
    maps: Vec<Weak<FileMap>>,
    /// Faults of the process at the last look.
    seen: usize,
}

impl Files {
    /// Those of these maps.
    pub(crate) fn of<'m>(maps: impl Iterator<Item = &'m Arc<FileMap>>) -> Self {
        let mut files = Files::default();
        for map in maps {
            if !files.maps.iter().any(|known| known.as_ptr() == Arc::as_ptr(map)) {
                files.maps.push(Arc::downgrade(map));
            }
        }
        files
    }

    /// Whether all that was read so far was the files'. One comparison, unless there was a fault in the process.
    ///
    /// # Errors
    /// [`Error::InvalidFile`].
    pub(crate) fn check(&mut self) -> Result<()> {
        let faults = bus::faults();
        if faults != self.seen {
            self.maps.iter().filter_map(Weak::upgrade).try_for_each(|map| map.check())?;
            self.seen = faults;
        }
        Ok(())
    }
}
