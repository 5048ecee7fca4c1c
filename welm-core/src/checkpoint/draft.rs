//! A folder that is written where nobody looks for it, and takes its place when it is whole.
//!
//! Whoever looks at that place, at any time and after any fault, finds what was there before or all of what is new:
//!
//! - nothing is there: the draft lies beside it, and is renamed;
//! - a model that [`crate::quantize`] wrote is there: the draft lies beside it, and the two are exchanged in one step;
//! - an empty folder is there: the draft lies inside, so that mounted folders and the current one can be given, and its
//!   files are moved up, the weights last.
//!
//! Anything else is refused, so that no file of somebody else is lost. A draft is removed when it is dropped. What a killed
//! process left is removed by the next that writes to the same place: a draft is locked as long as somebody writes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::int8_folder::{FORMAT, FORMAT_PLAIN};
use super::open::identity_of;
use crate::error::{Error, Result};
use crate::host::exchange::exchange;
use crate::side_file::{ADDITIONAL_TEMPLATES, DESCRIPTIONS};
use crate::weights::safetensors;

/// What is at the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Free,
    /// A folder without entries.
    Empty,
    /// A model that this library wrote.
    Ours,
}

/// A folder that is being written.
pub(crate) struct Draft {
    /// Its place.
    to: PathBuf,
    /// Where it is now.
    folder: PathBuf,
    place: Place,
    /// Whether it is at its place, and nothing of it left to remove.
    moved: bool,
    /// Held as long as it is written; none where folders cannot be locked.
    _lock: Option<File>,
}

impl Draft {
    /// Begins a folder for the place `to`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if something of somebody else is there; [`Error::Io`] if it cannot be written.
    pub(crate) fn new(to: &Path) -> Result<Draft> {
        // The empty path is the current folder for some calls of the system.
        if to.as_os_str().is_empty() {
            return Err(Error::option("to", "expected the name of a folder, got an empty path"));
        }
        let given = |e: io::Error| Error::io(to, e);
        // A link stays, and what it leads to is replaced.
        let to = match to.symlink_metadata() {
            Ok(_) => fs::canonicalize(to).map_err(given)?,
            Err(e) if e.kind() == ErrorKind::NotFound => to.to_path_buf(),
            Err(e) => return Err(given(e)),
        };
        let name = to.file_name().ok_or_else(|| Error::io(&to, "expected the name of a folder"))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".unfinished-");

        let beside = match to.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(Error::io(&to, "expected the name of a folder")),
        };
        fs::create_dir_all(beside).map_err(given)?;
        for parent in [beside, &to] {
            remove_left_drafts(parent, &prefix);
        }
        let place = place(&to)?;
        let parent = if place == Place::Empty { &to } else { beside };
        let (folder, lock) = begin(parent, &prefix).map_err(given)?;
        let draft = Draft { to, folder, place, moved: false, _lock: lock };
        if place == Place::Ours {
            draft.expect_exchange()?;
        }
        Ok(draft)
    }

    /// Where a file of it is written.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file of it.
    pub(crate) fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            File::create_new(&path)?.write_all(bytes)
        };
        write().map_err(|e| Error::io(&path, e))
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// As [`Draft::new`], if something else came to the place meanwhile. What is there stays.
    pub(crate) fn publish(mut self) -> Result<()> {
        // On the disk before it can be seen: a computer that loses its power must not keep the names alone.
        store(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        if self.place == Place::Empty {
            return self.move_up();
        }
        // Only if nothing is there, or came meanwhile: a rename replaces no folder that has entries.
        match fs::rename(&self.folder, &self.to) {
            Ok(()) => self.moved = true,
            Err(e) => match place(&self.to)? {
                Place::Ours => self.exchange()?,
                Place::Free | Place::Empty => return Err(Error::io(&self.to, e)),
            },
        }
        store_entries(self.to.parent());
        Ok(())
    }

    fn exchange(&self) -> Result<()> {
        let fault = |e| Error::io(&self.to, e);
        let _lock = lock_place(&self.to); // it will lie where drafts do, and nobody else shall remove it
        exchange(&self.folder, &self.to).map_err(fault)?;
        // It may have become another one since it was looked at.
        if let Some(held) = foreign(&self.folder)? {
            exchange(&self.folder, &self.to).map_err(fault)?;
            return Err(refused(&self.to, &held));
        }
        Ok(()) // what was there before is the draft now, and removed as one
    }

    /// Moves the files into the folder that they lie below.
    fn move_up(&self) -> Result<()> {
        let own = self.folder.file_name();
        if let Some(held) = entries(&self.to)?.iter().find(|name| Some(name.as_os_str()) != own) {
            return Err(refused(&self.to, held));
        }
        let mut names = entries(&self.folder)?;
        names.sort_by_key(|name| name == safetensors::SINGLE);
        for (moved, name) in names.iter().enumerate() {
            if let Err(e) = fs::rename(self.folder.join(name), self.to.join(name)) {
                for name in &names[..moved] {
                    let _ = fs::rename(self.to.join(name), self.folder.join(name));
                }
                return Err(Error::io(&self.to, e));
            }
        }
        store_entries(Some(&self.to));
        Ok(())
    }

    /// Checks, before the work, that two folders can change places here.
    fn expect_exchange(&self) -> Result<()> {
        let (a, b) = (self.folder.join("a"), self.folder.join("b"));
        fs::create_dir(&a).and_then(|()| fs::create_dir(&b)).map_err(|e| Error::io(&self.folder, e))?;
        let exchanged = exchange(&a, &b);
        fs::remove_dir(&a).and_then(|()| fs::remove_dir(&b)).map_err(|e| Error::io(&self.folder, e))?;
        exchanged.map_err(|e| {
            let to = self.to.display();
            let reason = format!(
                "expected a new or empty folder where the file system cannot exchange two ({e}), got {to}, which has a model"
            );
            Error::option("to", reason)
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Another process may have a draft of this name since it was moved.
        if !self.moved {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn refused(to: &Path, held: &OsStr) -> Error {
    let (to, held) = (to.display(), held.display());
    let expected = "expected a new or empty folder, or an int8 folder that quantize wrote";
    Error::option("to", format!("{expected}, got {to}, which has {held}"))
}

/// What is at a place where a model shall be written.
fn place(to: &Path) -> Result<Place> {
    match to.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Place::Free),
        Err(e) => Err(Error::io(to, e)),
        Ok(info) if !info.is_dir() => Err(Error::io(to, "expected a folder")),
        Ok(_) if entries(to)?.is_empty() => Ok(Place::Empty),
        Ok(_) => {
            let _lock = lock_place(to); // it shall not become another folder while it is looked at
            match foreign(to)? {
                None => Ok(Place::Ours),
                Some(held) => Err(refused(to, &held)),
            }
        }
    }
}

/// An entry of a folder that [`crate::quantize`] has not written; none if it wrote the model in it, and nothing else is
/// there.
fn foreign(folder: &Path) -> Result<Option<OsString>> {
    let names = entries(folder)?;
    let weights = safetensors::open(&folder.join(safetensors::SINGLE)).ok();
    let format = weights.as_ref().and_then(|weights| weights.metadata.get("format"));
    if !matches!(format.map(String::as_str), Some(FORMAT | FORMAT_PLAIN)) {
        // Weights of floats can be the only ones there are.
        let weights = names.iter().find(|name| *name == safetensors::SINGLE);
        return Ok(weights.or(names.first()).cloned());
    }
    let is_jinja = |name: &OsString| Path::new(name).extension().is_some_and(|e| e == "jinja");
    for name in names {
        let ours = name == safetensors::SINGLE
            || DESCRIPTIONS.iter().any(|side| name == side.name)
            || name == ADDITIONAL_TEMPLATES.name && entries(&folder.join(&name))?.iter().all(is_jinja);
        if !ours {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The names in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<OsString>> {
    let names = || fs::read_dir(folder)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<_>>();
    let mut names: Vec<OsString> = names().map_err(|e| Error::io(folder, e))?;
    names.sort();
    Ok(names)
}

/// A new folder whose name begins so, and its lock, if folders can be locked here.
fn begin(parent: &Path, prefix: &OsStr) -> io::Result<(PathBuf, Option<File>)> {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = prefix.to_os_string();
        name.push(format!("{}-{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
        let folder = parent.join(name);
        match fs::create_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        // Somebody who looks for drafts that were left may have come before the lock.
        let file = File::open(&folder).ok();
        let taken = file.as_ref().map(File::try_lock);
        if !matches!(taken, Some(Err(TryLockError::WouldBlock))) && folder.is_dir() {
            let lock = file.filter(|_| matches!(taken, Some(Ok(()))));
            return Ok((folder, lock));
        }
    }
}

/// Locks a folder as long as the result lives; none if somebody else has, or if folders cannot be locked here.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok().map(|()| file)
}

/// Locks the folder that is at a place: whoever exchanges it has to. Waits for the one who put it there, whose lock lasts
/// a moment longer. None if folders cannot be locked here.
fn lock_place(to: &Path) -> Option<File> {
    loop {
        let file = File::open(to).ok()?;
        file.lock().ok()?;
        // Another one may have come to the place meanwhile.
        if identity_of(&file.metadata().ok()?) == identity_of(&fs::metadata(to).ok()?) {
            return Some(file);
        }
    }
}

/// Removes the drafts that nobody writes any more.
fn remove_left_drafts(parent: &Path, prefix: &OsStr) {
    let Ok(names) = entries(parent) else { return };
    for name in names {
        let folder = parent.join(&name);
        let is_draft = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        // Not what a link leads to.
        if !is_draft || !folder.symlink_metadata().is_ok_and(|info| info.is_dir()) {
            continue;
        }
        if let Some(_held) = lock(&folder) {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

/// Has the system write a folder with all that is in it to the disk.
fn store(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => store(&entry.path())?,
            false => File::options().write(true).open(entry.path())?.sync_all()?,
        }
    }
    store_entries(Some(folder));
    Ok(())
}

/// Has the system write the names in a folder to the disk. Not every file system can; then they come later.
fn store_entries(folder: Option<&Path>) {
    let folder = folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    if let Some(Ok(folder)) = folder.map(File::open) {
        let _ = folder.sync_all();
    }
}
