//! What the demo sends: files that exist, and one that is made while it is read. Nothing is ever whole in memory.
//!
//! Owns the choice of files, and the hash of what was read. Must not submit.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::cli::CliError;

/// Most files that the demo takes when it chooses them itself.
const CHOSEN_FILES: usize = 1000;
/// Most bytes in them.
const CHOSEN_BYTES: u64 = 64 << 20;

/// A file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payload {
    /// As it was named or found.
    pub path: PathBuf,
    /// Its length in bytes when it was found.
    pub bytes: u64,
}

/// The files to send, and how they were chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    /// In the order of sending.
    pub files: Vec<Payload>,
    /// How, for people.
    pub how: String,
}

impl Chosen {
    /// All bytes together.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// What the demo sends: what was named, or what git tracks here, or this program. Blocks.
pub(super) fn choose(named: &[PathBuf]) -> Result<Chosen, CliError> {
    if !named.is_empty() {
        let (mut files, mut others) = (Vec::new(), 0);
        for path in named {
            std::fs::metadata(path).map_err(|error| {
                let text = format!("{}: {error}: name files or folders that are there", path.display());
                CliError::usage(format!("--payload: {text}"))
            })?;
            walk(path, &mut files, &mut others)?;
        }
        if files.is_empty() {
            return Err(CliError::usage("--payload: no file is there: name files, or folders with files in them"));
        }
        let passed = if others == 0 { String::new() } else { format!(" ({others} links and the like passed over)") };
        return Ok(Chosen { files, how: format!("the files named{passed}") });
    }
    let tracked = tracked();
    let found = tracked.len();
    let mut bytes = 0;
    let fits = |file: &Payload| {
        bytes += file.bytes;
        bytes <= CHOSEN_BYTES
    };
    let files: Vec<_> = tracked.into_iter().take(CHOSEN_FILES).take_while(fits).collect();
    if files.is_empty() {
        let program = std::env::current_exe().map_err(|error| CliError::new(crate::cli::Exit::Failed, error))?;
        let (mut files, mut others) = (Vec::new(), 0);
        walk(&program, &mut files, &mut others)?;
        return Ok(Chosen { files, how: "this program (name others with --payload)".to_owned() });
    }
    let how = if files.len() < found {
        format!("the first of {found} files that git tracks here (all of them: --payload .)")
    } else {
        "the files that git tracks here".to_owned()
    };
    Ok(Chosen { files, how })
}

/// Regular files at or below a path, by name; links are followed only where they are named themselves.
fn walk(path: &Path, files: &mut Vec<Payload>, others: &mut u64) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file(path, &error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_file() {
        files.push(Payload { path: path.to_path_buf(), bytes: metadata.len() });
    } else if metadata.is_dir() {
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
        let mut paths: Vec<_> = entries.iter().map(std::fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let kind = std::fs::symlink_metadata(&path).map_err(|error| CliError::file(&path, &error))?.file_type();
            if kind.is_file() || kind.is_dir() {
                walk(&path, files, others)?;
            } else {
                *others += 1;
            }
        }
    } else {
        *others += 1;
    }
    Ok(())
}

/// The files of the current folder that git tracks and that are there; none without git or outside a repository.
fn tracked() -> Vec<Payload> {
    let listed = Command::new("git").args(["ls-files", "-z"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(listed) = listed else { return Vec::new() };
    if !listed.status.success() {
        return Vec::new();
    }
    let names = listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let files = names.filter_map(|name| {
        use std::os::unix::ffi::OsStrExt;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(name));
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        metadata.is_file().then_some(Payload { path, bytes: metadata.len() })
    });
    files.collect()
}

/// A file that nobody stored: bytes that follow from a seed.
pub(super) struct Made {
    stream: blake3::OutputReader,
    left: u64,
}

impl Made {
    /// So many bytes of this seed's stream.
    pub(super) fn new(seed: u64, bytes: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"sealcast demo").update(&seed.to_be_bytes());
        Self { stream: hasher.finalize_xof(), left: bytes }
    }
}

impl AsyncRead for Made {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let unfilled = into.initialize_unfilled();
        let count = unfilled.len().min(most);
        if let Some(unfilled) = unfilled.get_mut(..count) {
            self.stream.fill(unfilled);
        }
        into.advance(count);
        self.left -= count as u64;
        Poll::Ready(Ok(()))
    }
}

/// Hashes and counts what is read through it.
pub(super) struct Hashing<R, F> {
    inner: R,
    hasher: blake3::Hasher,
    bytes: u64,
    tell: F,
}

impl<R, F: FnMut(u64)> Hashing<R, F> {
    /// Around a reader; `tell` is called with the number of bytes of each read.
    pub(super) fn new(inner: R, tell: F) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), bytes: 0, tell }
    }

    /// How many bytes passed, and their hash.
    pub(super) fn digest(&self) -> (u64, blake3::Hash) {
        (self.bytes, self.hasher.finalize())
    }
}

impl<R: AsyncRead + Unpin, F: FnMut(u64) + Unpin> AsyncRead for Hashing<R, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let before = into.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, into))?;
        let new = into.filled().get(before..).unwrap_or_default();
        this.hasher.update(new);
        this.bytes += new.len() as u64;
        (this.tell)(new.len() as u64);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_made_file_is_the_same_for_the_same_seed() {
        let mut read = Hashing::new(Made::new(7, 100_000), |_| {});
        let mut whole = Vec::new();
        read.read_to_end(&mut whole).await.unwrap();
        assert_eq!(read.digest(), (100_000, blake3::hash(&whole)));
        let mut pieces = Hashing::new(Made::new(7, 100_000), |_| {});
        let mut piece = [0; 77];
        while pieces.read(&mut piece).await.unwrap() > 0 {}
        assert_eq!(pieces.digest(), read.digest());
        let mut other = Hashing::new(Made::new(8, 100_000), |_| {});
        other.read_to_end(&mut Vec::new()).await.unwrap();
        assert_ne!(other.digest(), read.digest());
    }

    #[test]
    fn folders_are_walked_by_name_and_links_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("b/two"), "22").unwrap();
        std::fs::write(at("a"), "1").unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let chosen = choose(&[folder.path().to_path_buf(), at("link")]).unwrap();
        let found: Vec<_> = chosen.files.iter().map(|file| (file.path.clone(), file.bytes)).collect();
        assert_eq!(found, [(at("a"), 1), (at("b/two"), 2), (at("link"), 1)]);
        assert_eq!((chosen.bytes(), chosen.how.contains("1 links")), (4, true));
        assert_eq!(choose(&[at("absent")]).unwrap_err().exit(), crate::cli::Exit::Usage);
    }
}
