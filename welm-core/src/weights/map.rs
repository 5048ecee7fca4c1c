//! A model's file, mapped: read where it lies, and told apart from zeros if it loses its end meanwhile.

use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::error::{Error, Result};
use crate::host::bus::{self, Watched};
use crate::side_file;

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
        let file = side_file::open(path)?.ok_or_else(|| Error::io(path, "no such file"))?;
        let len = file.metadata().map_or(0, |info| info.len());
        // SAFETY: the mapping is private to reads, and the file is not modified while it is mapped; nothing can
        // enforce the latter, so it is a documented requirement on whoever loads a model (see the module `weights`).
        // If it is truncated all the same, reads see zeros, and `check` tells.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| match e.kind() {
            io::ErrorKind::OutOfMemory => {
                Error::allocation(format!("the map of {}", path.display()), len as usize, e)
            }
            _ => Error::io(path, e),
        })?;
        if map.is_empty() {
            return Err(Error::file(path, "the file is empty"));
        }
        let watched = Some(Watched::new(&map));
        Ok(Arc::new(FileMap { path: path.to_path_buf(), watched, map }))
    }

    /// Lets the pages of these bytes leave the process's memory. Whoever reads them again has them read from the file.
    pub(crate) fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        // SAFETY: nothing writes to the map, so that a page that is read again has what it had.
        let _ =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// Whether what was read from the file was the file.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if a part could not be read, which then was taken for zeros.
    pub(super) fn check(&self) -> Result<()> {
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Pages of files in this process's memory, in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn released_bytes_leave_memory_and_stay_what_they_were() {
        const LEN: usize = 64 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, (0..LEN).map(|i| (i / 999) as u8).collect::<Vec<_>>()).unwrap();
        let map = FileMap::open(&path).unwrap();
        let sum = || map.iter().map(|&x| u64::from(x)).sum::<u64>();
        let before = sum();
        let read = resident();
        map.release(LEN / 4..LEN);
        let released = resident();
        assert!(read - released > LEN / 2, "{read} {released}");
        assert_eq!(sum(), before);
    }
}
