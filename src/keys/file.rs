//! Key files on disk: created for the owner alone, refused when others can read them.
//!
//! Owns permissions and durability of key files. Must not know what is in them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::KeyError;
use crate::core::limits;
use crate::seams::Disk;

fn io(path: &Path, verb: &'static str) -> impl FnOnce(std::io::Error) -> KeyError {
    let path = path.to_path_buf();
    move |cause| KeyError::Io { path, verb, cause }
}

/// Reads a file that holds a secret. Permissions are checked on the opened descriptor, so the file cannot be exchanged
/// in between. Errors: [`KeyError::Io`], [`KeyError::OpenToOthers`], [`KeyError::NoKeyFile`], [`KeyError::Text`] when it
/// is no UTF-8.
pub fn read_secret_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let most = limits::KEY_FILE_BYTES;
    // Not blocking: opening a named pipe must not hang before it is refused.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(io(path, "open"))?;
    let metadata = file.metadata().map_err(io(path, "stat"))?;
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if !metadata.is_file() || length > most {
        return Err(KeyError::NoKeyFile { path: path.to_path_buf(), most });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::OpenToOthers { path: path.to_path_buf(), mode });
    }
    // One byte more than it needs, so that reading to the end does not move (and leave behind) what was read.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
    file.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(io(path, "read"))?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(KeyError::text(&path.display().to_string(), "no key file: it is no text")),
    }
}

/// Creates a file that must not exist yet, readable by its owner alone, and makes it durable. Errors: [`KeyError::Io`].
pub(super) fn create(path: &Path, bytes: &[u8], disk: &dyn Disk) -> Result<(), KeyError> {
    let file = disk.create_new(path).map_err(io(path, "create"))?;
    file.write_at(bytes, 0).map_err(io(path, "write"))?;
    file.sync().map_err(io(path, "sync"))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    disk.sync_folder(&folder).map_err(io(&folder, "sync"))
}
