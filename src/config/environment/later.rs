//! What is added to an environment later: the next directory, signed, and the folders of who is new.
//!
//! Owns the order of writing: what is new first, the draft, then the signed directory, so that nobody is listed whose keys
//! were lost. Must not decide who may do what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::texts::Texts;
use super::{EnvironmentError, Files, NODES, READERS, SENDERS, Serving, TRANSPORT_FILE};
use crate::config::TransportSection;
use crate::config::properties::{self, FILE_SUFFIX};
use crate::core::directory::{Difference, Directory, Draft, FIRST_LINE, differences};
use crate::core::id::{DestinationName, NodeName, ReaderName, SenderName, Suite};
use crate::keys::{KeyRing, NodeKeys, OperatorKey, ReaderKey, SecretFile, SenderKey};
use crate::seams::{Disk, Seams};

/// Files with passwords and certificates, by name.
type Beside = BTreeMap<PathBuf, Zeroizing<Vec<u8>>>;

/// Whose keys were made just now, and get a folder.
pub enum New {
    /// A sender, and the suite that it seals with.
    Sender(SenderName, SenderKey, Suite),
    /// A reader.
    Reader(ReaderName, ReaderKey),
    /// A node.
    Node(NodeName, Box<NodeKeys>, Serving),
    /// A destination: its nodes get its keys.
    Destination(Box<KeyRing>),
}

/// Where what an operator keeps lies, as far as it is not beside the operator's key.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The draft; by default `directory.toml` beside the key.
    pub draft: Option<PathBuf>,
    /// The signed directory; by default `directory` beside the draft.
    pub signed: Option<PathBuf>,
    /// A file with `[transport]` for new configurations; by default `transport.toml` beside the key.
    pub transport: Option<PathBuf>,
    /// The environment's folder; by default that of the key, or the one above when that is called `operator`.
    pub environment: Option<PathBuf>,
}

/// An operator at the desk: the key, the directory that was signed last and the draft of the next.
pub struct Keeper {
    operator: OperatorKey,
    environment: PathBuf,
    draft_file: PathBuf,
    signed_file: PathBuf,
    transport_file: PathBuf,
    before: Option<Directory>,
    /// The draft of the next directory, open to change.
    pub draft: Draft,
}

/// What was signed and written.
#[derive(Debug, Clone)]
pub struct Added {
    /// The directory, signed and verified.
    pub directory: Directory,
    /// Its file.
    pub signed_file: PathBuf,
    /// The version before.
    pub before: Option<u64>,
    /// The configuration of the sender, reader or node that is new.
    pub config: Option<PathBuf>,
    /// The new destination's keys, sealed to each node.
    pub key_rings: BTreeMap<NodeName, PathBuf>,
    /// Every other file that is new, in the order of writing.
    pub files: Vec<PathBuf>,
}

impl Keeper {
    /// Reads the operator's key, the signed directory and the draft; where there is no draft, the directory's content is
    /// it. Blocks. Errors: [`EnvironmentError::Key`], [`EnvironmentError::Kept`], [`EnvironmentError::Io`].
    pub fn open(key: &Path, places: Places) -> Result<Self, EnvironmentError> {
        let operator = OperatorKey::read(key)?;
        let beside = folder_of(key);
        let draft_file = places.draft.unwrap_or_else(|| beside.join("directory.toml"));
        let signed_file = places.signed.unwrap_or_else(|| folder_of(&draft_file).join("directory"));
        let kept = |path: &Path| {
            let path = path.to_path_buf();
            move |problem: String| EnvironmentError::Kept { path, problem }
        };
        let before = match read(&signed_file)? {
            None => None,
            Some(bytes) => {
                let verified = Directory::verify(&bytes, &operator.signing().public(), 1);
                Some(verified.map_err(|error| kept(&signed_file)(error.to_string()))?)
            }
        };
        let draft = match (read(&draft_file)?, &before) {
            (Some(bytes), _) if bytes.starts_with(FIRST_LINE.as_bytes()) => {
                let problem = "is a signed directory: name the draft (directory.toml)".to_owned();
                return Err(kept(&draft_file)(problem));
            }
            (Some(bytes), _) => {
                let text = String::from_utf8(bytes).map_err(|error| kept(&draft_file)(error.to_string()))?;
                Draft::from_toml(&text).map_err(|error| kept(&draft_file)(error.to_string()))?
            }
            (None, Some(before)) => Draft::after(before),
            (None, None) => {
                let problem = "there is no draft and no signed directory: begin with `sealcast directory create`, or say \
                               where they are";
                return Err(kept(&draft_file)(problem.to_owned()));
            }
        };
        Ok(Self {
            environment: places.environment.unwrap_or_else(|| home(&beside)),
            transport_file: places.transport.unwrap_or_else(|| tidy(beside.join(TRANSPORT_FILE))),
            operator,
            draft_file: tidy(draft_file),
            signed_file: tidy(signed_file),
            before,
            draft,
        })
    }

    /// What the next directory changes.
    pub fn changes(&self) -> Vec<Difference> {
        differences(self.before.as_ref().map(Draft::after).as_ref(), &self.draft)
    }

    /// The environment's folder: folders of who is new are below it.
    pub fn environment(&self) -> &Path {
        &self.environment
    }

    /// The directory that was signed last.
    pub fn before(&self) -> Option<&Directory> {
        self.before.as_ref()
    }

    /// What nodes that run would refuse of the draft, by destination.
    pub fn refused_by_running(&self, next: &Directory) -> Vec<String> {
        let Some(before) = &self.before else { return Vec::new() };
        let kept = before.destinations.keys().map(|name| next.check_keeps(before, name));
        kept.filter_map(Result::err).map(|error| error.to_string()).collect()
    }

    /// The draft as it would be signed: with the next version, checked. Errors: [`EnvironmentError::Kept`].
    pub fn next_directory(&mut self) -> Result<Directory, EnvironmentError> {
        if let Some(before) = &self.before {
            self.draft.version = self.draft.version.max(before.version.saturating_add(1));
        }
        let of_draft = |error: &dyn std::fmt::Display| EnvironmentError::Kept {
            path: self.draft_file.clone(),
            problem: error.to_string(),
        };
        let bytes = self.draft.sign(self.operator.signing()).map_err(|error| of_draft(&error))?;
        let next = Directory::verify(&bytes, &self.operator.signing().public(), self.draft.version)?;
        if let Some(before) = &self.before {
            next.check_successor_of(before).map_err(|error| of_draft(&error))?;
        }
        Ok(next)
    }

    /// Signs the draft and writes it, with the folder of who is new. Both directory files are replaced as wholes. Blocks.
    /// Errors: [`EnvironmentError`]; what was written before it stays, and [`EnvironmentError::Exists`] names it at the next
    /// try.
    pub fn sign(mut self, new: Option<New>, seams: &Seams) -> Result<Added, EnvironmentError> {
        let directory = self.next_directory()?;
        let before = self.before.as_ref().map(|before| before.version);
        let mut files = Files { root: &self.environment, disk: &*seams.disk, written: Vec::new() };
        let (mut config, mut key_rings) = (None, BTreeMap::new());
        let public = self.operator.signing().public().bytes();
        let texts = |transport| Texts {
            name: directory.name.clone(),
            operator: public,
            minimum_version: directory.version,
            transport,
        };
        match new {
            None => {}
            Some(New::Sender(name, key, suite)) => {
                files.check_new(SENDERS, name.as_str())?;
                let (transport, beside) = self.transport()?;
                let text = texts(transport).sender(&name, suite);
                let (text, key) = (("client.toml", text.as_str()), ("sender.key", &key));
                let file = files.bundle(SENDERS, name.as_str(), text, key, &directory, seams)?;
                files.beside(&file, &beside)?;
                config = Some(file);
            }
            Some(New::Reader(name, key)) => {
                files.check_new(READERS, name.as_str())?;
                let text = texts(String::new()).reader(&name);
                let (text, key) = (("client.toml", text.as_str()), ("reader.key", &key));
                config = Some(files.bundle(READERS, name.as_str(), text, key, &directory, seams)?);
            }
            Some(New::Node(name, keys, serving)) => {
                files.check_new(NODES, name.as_str())?;
                let address = directory.nodes.get(&name).map_or("", |entry| entry.address.as_str());
                let (transport, beside) = self.transport()?;
                let text = texts(transport).node(&name, address, &serving)?;
                let (text, key) = (("node.toml", text.as_str()), ("node.key", &*keys));
                let file = files.bundle(NODES, name.as_str(), text, key, &directory, seams)?;
                files.beside(&file, &beside)?;
                config = Some(file);
            }
            Some(New::Destination(ring)) => self.destination(&ring, &directory, &mut files, &mut key_rings, seams)?,
        }
        files.sync()?;
        let written = files.written;
        replace(&*seams.disk, &self.draft_file, self.draft.to_toml()?.as_bytes())?;
        replace(&*seams.disk, &self.signed_file, directory.bytes())?;
        Ok(Added { directory, signed_file: self.signed_file, before, config, key_rings, files: written })
    }

    /// The keys of a destination: for the operator, and sealed to each of its nodes.
    fn destination(
        &self,
        ring: &KeyRing,
        directory: &Directory,
        files: &mut Files<'_>,
        key_rings: &mut BTreeMap<NodeName, PathBuf>,
        seams: &Seams,
    ) -> Result<(), EnvironmentError> {
        let name: &DestinationName = ring.destination();
        let folder = folder_of(&self.draft_file).join("destinations");
        seams.disk.create_folder(&folder).map_err(files.failed(&folder))?;
        files.secret(folder.join(format!("{name}.key")), ring, seams)?;
        let nodes = directory.destinations.get(name).map(|entry| entry.nodes.as_slice()).unwrap_or_default();
        for node in nodes {
            for path in files.key_rings(node, &[ring], directory, seams)? {
                key_rings.insert(node.clone(), path);
            }
        }
        Ok(())
    }

    /// `[transport]` for a new configuration, and the files with passwords and certificates that belong beside it.
    fn transport(&self) -> Result<(String, Beside), EnvironmentError> {
        #[derive(Deserialize)]
        struct Has {
            transport: toml::Table,
        }
        let path = &self.transport_file;
        let wrong = |problem: String| EnvironmentError::Kept { path: path.clone(), problem };
        let bytes = read(path)?.ok_or_else(|| {
            wrong("is not there: name a node.toml or client.toml whose [transport] is right for it".to_owned())
        })?;
        let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
        // By its message alone: the text may hold secrets.
        let has: Has = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        let mut section = toml::Value::Table(has.transport);
        let checked =
            TransportSection::deserialize(section.clone()).map_err(|error| wrong(error.message().to_owned()))?;
        let folder = folder_of(path);
        let (mut beside, mut anchored) = (Beside::new(), toml::Table::new());
        for (written, value) in checked.properties {
            let needed = |error: &dyn std::fmt::Display| wrong(format!("transport.properties.{written}: {error}"));
            let file = Path::new(&value);
            // What lies beside this configuration goes beside the new one; all else stays where it is, and is named so that
            // it is found from there.
            let value = match written.strip_suffix(FILE_SUFFIX) {
                Some(_) if file.is_absolute() => value,
                Some(property) => {
                    let from = folder.join(file);
                    let text = properties::read(&property.replace('_', "."), &from).map_err(|error| needed(&error))?;
                    if file.components().count() == 1 {
                        beside.insert(file.to_path_buf(), Zeroizing::new(text.into_bytes()));
                        value
                    } else {
                        std::path::absolute(&from).map_err(|error| needed(&error))?.display().to_string()
                    }
                }
                None => properties::anchored(&written.replace('_', "."), &value, &folder).map_err(wrong)?,
            };
            anchored.insert(written, toml::Value::String(value));
        }
        if let (false, Some(section)) = (anchored.is_empty(), section.as_table_mut()) {
            section.insert("properties".to_owned(), toml::Value::Table(anchored));
        }
        let table = toml::Table::from_iter([("transport".to_owned(), section)]);
        Ok((toml::to_string(&table).map_err(|error| wrong(error.to_string()))?, beside))
    }
}

impl Files<'_> {
    /// Writes what belongs beside a configuration.
    fn beside(&mut self, config: &Path, files: &Beside) -> Result<(), EnvironmentError> {
        for (name, bytes) in files {
            self.text(folder_of(config).join(name), bytes)?;
        }
        Ok(())
    }

    /// Refuses a folder that has something in it.
    fn check_new(&self, kind: &str, name: &str) -> Result<(), EnvironmentError> {
        let folder = self.root.join(kind).join(name);
        match self.disk.list(&folder).map_err(self.failed(&folder))?.is_empty() {
            true => Ok(()),
            false => Err(EnvironmentError::Exists { folder }),
        }
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The environment's folder, when the operator's things lie in this one.
fn home(operators: &Path) -> PathBuf {
    let is_operator = |path: &Path| path.file_name().is_some_and(|name| name == "operator");
    if is_operator(operators) {
        folder_of(operators)
    } else if std::fs::canonicalize(operators).is_ok_and(|whole| is_operator(&whole)) {
        tidy(operators.join(".."))
    } else {
        operators.to_path_buf()
    }
}

/// A path as people write it, without a dot in front.
fn tidy(path: PathBuf) -> PathBuf {
    match path.strip_prefix(".") {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.to_path_buf(),
        _ => path,
    }
}

/// A file's bytes; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, EnvironmentError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(EnvironmentError::Io { path: path.to_path_buf(), cause }),
    }
}

/// Replaces a file as a whole: its old text or its new one, never half of it.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), EnvironmentError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let (folder, new) = (folder_of(path), path.with_file_name(name));
    let written = || {
        // One that an earlier end left behind.
        disk.remove(&new)?;
        let file = disk.create_new(&new)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&new, path)?;
        disk.sync_folder(&folder)
    };
    written().map_err(|cause| EnvironmentError::Io { path: path.to_path_buf(), cause })
}
