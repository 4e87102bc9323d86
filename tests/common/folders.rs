//! Folders as a whole: a copy of one moment is what a backup is.

use std::io;
use std::path::{Path, PathBuf};

/// Copies a folder, with the folders in it and everybody's permissions, into one that need not be there yet.
pub fn copy(from: &Path, to: &Path) {
    try_copy(from, to).unwrap();
}

/// The same for a folder in which somebody may still write: what is there is copied. Errors: the first that there was.
pub fn try_copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    let mut outcome = Ok(());
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        let copied = if path.is_dir() { try_copy(&path, &target) } else { std::fs::copy(&path, &target).map(drop) };
        outcome = outcome.and(copied);
    }
    outcome
}

/// All files of a folder and of those in it.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}
