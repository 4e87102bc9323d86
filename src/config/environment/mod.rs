//! A whole new environment, written at once: what `sealcast init` does.
//!
//! ```text
//! DIR/operator/           operator.key  directory.toml (draft)  directory (signed)  destinations/NAME.key  transport.toml
//! DIR/nodes/NAME/         node.toml     node.key    directory   destinations/NAME.keyring
//! DIR/senders/NAME/       client.toml   sender.key  directory
//! DIR/readers/NAME/       client.toml   reader.key  directory
//! ```
//!
//! Each folder is for one machine, readable by its owner alone. Passwords and certificates of the Kafka client lie beside the
//! configuration, in files named like the property (`sasl.password`). The same plan, clock and randomness give the same bytes.
//!
//! What comes later gets the same folders: [`Keeper`] adds it, signs the next directory and writes what is new.
//!
//! Owns this layout. Must not start, publish or create topics.

mod later;
mod texts;

pub use later::{Added, Keeper, New, Places, replace};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::TransportSettings;
use super::properties::holds_secret;
use crate::core::directory::{DestinationEntry, Directory, DirectoryError, Draft};
use crate::core::id::{
    DestinationName, EnvironmentId, EnvironmentName, NodeName, ReaderName, SenderName, Suite, Time, VerifyingKeyBytes,
};
use crate::keys::{KeyError, KeyRing, NodeKeys, OperatorKey, ReaderKey, SecretFile, SenderKey};
use crate::seams::{Disk, RandomnessError, Seams};
pub use texts::HTTP_ABOVE;
use texts::Texts;

/// The loopback port of the first node when no addresses are given; the next nodes have the next ones.
pub const FIRST_PORT: u16 = 7401;

/// The folders of an environment, each with one folder for a machine.
const NODES: &str = "nodes";
const SENDERS: &str = "senders";
const READERS: &str = "readers";

/// What the operator keeps of the transport, for configurations that are written later.
const TRANSPORT_FILE: &str = "transport.toml";

/// How long a directory is valid when the plan does not say: a year.
pub const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What to write.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The environment's name, part of its topics' names.
    pub name: EnvironmentName,
    /// Every node with its address, `HOST:PORT`. Each is a voter of each destination.
    pub nodes: BTreeMap<NodeName, String>,
    /// The destinations, at least one.
    pub destinations: BTreeSet<DestinationName>,
    /// Who may send, to every destination.
    pub senders: BTreeSet<SenderName>,
    /// Who may read every destination.
    pub readers: BTreeSet<ReaderName>,
    /// What carries segments and notices. A relative embedded path is relative to the environment's folder.
    pub transport: TransportSettings,
    /// The suite that senders seal with. Destinations have keys of both.
    pub suite: Suite,
    /// Parcels of a lower suite are refused.
    pub minimum_suite: Suite,
    /// How long the directory is valid, from now.
    pub valid_for: Duration,
}

/// On which addresses of its machine a node serves. Ports follow from the address that others use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Host on which it listens, with the port that others use; without it, the address that others use.
    pub listen: Option<String>,
    /// Host of metrics and health, 100 ports above the node's own.
    pub http: String,
}

impl Default for Serving {
    /// The address that others use; metrics and health for this machine alone.
    fn default() -> Self {
        Self { listen: None, http: "127.0.0.1".to_owned() }
    }
}

impl Plan {
    /// Addresses on loopback for nodes that are only named: ports from [`FIRST_PORT`] on, in the order given. Errors:
    /// [`EnvironmentError::Plan`] for a name given twice.
    pub fn on_loopback(
        names: impl IntoIterator<Item = NodeName>,
    ) -> Result<BTreeMap<NodeName, String>, EnvironmentError> {
        let mut nodes = BTreeMap::new();
        for (name, port) in names.into_iter().zip(FIRST_PORT..) {
            if nodes.insert(name.clone(), format!("127.0.0.1:{port}")).is_some() {
                return Err(EnvironmentError::Plan { problem: format!("node {name} is named twice") });
            }
        }
        Ok(nodes)
    }
}

/// What was written, and where.
#[derive(Debug, Clone)]
pub struct Written {
    /// The environment's folder.
    pub folder: PathBuf,
    /// The signed directory, verified.
    pub directory: Directory,
    /// The operator's public key.
    pub operator: VerifyingKeyBytes,
    /// The operator's key file.
    pub operator_key: PathBuf,
    /// Each node's `node.toml`.
    pub nodes: BTreeMap<NodeName, PathBuf>,
    /// Each sender's `client.toml`.
    pub senders: BTreeMap<SenderName, PathBuf>,
    /// Each reader's `client.toml`.
    pub readers: BTreeMap<ReaderName, PathBuf>,
    /// Every file, in the order of writing.
    pub files: Vec<PathBuf>,
}

/// The configurations of an environment that is there, as [`write()`] and `sealcast directory add` leave them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundles {
    /// Each node's `node.toml`.
    pub nodes: BTreeMap<NodeName, PathBuf>,
    /// Each sender's `client.toml`.
    pub senders: BTreeMap<SenderName, PathBuf>,
    /// Each reader's `client.toml`.
    pub readers: BTreeMap<ReaderName, PathBuf>,
}

impl Bundles {
    /// Looks for them; empty where there is no environment. A folder without its configuration, or whose name is none, is
    /// passed over. Blocks. Errors: [`EnvironmentError::Io`].
    pub fn find(folder: &Path, disk: &dyn Disk) -> Result<Self, EnvironmentError> {
        Ok(Self {
            nodes: bundles(disk, &folder.join("nodes"), "node.toml")?,
            senders: bundles(disk, &folder.join("senders"), "client.toml")?,
            readers: bundles(disk, &folder.join("readers"), "client.toml")?,
        })
    }
}

impl From<&Written> for Bundles {
    fn from(written: &Written) -> Self {
        Self { nodes: written.nodes.clone(), senders: written.senders.clone(), readers: written.readers.clone() }
    }
}

fn bundles<N: std::str::FromStr + Ord>(
    disk: &dyn Disk,
    folder: &Path,
    config: &str,
) -> Result<BTreeMap<N, PathBuf>, EnvironmentError> {
    let failed = |path: &Path, cause| EnvironmentError::Io { path: path.to_path_buf(), cause };
    let mut found = BTreeMap::new();
    for bundle in disk.list(folder).map_err(|cause| failed(folder, cause))? {
        let config = bundle.join(config);
        let name = bundle.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(name) = name.filter(|_| bundle.is_dir()) else { continue };
        if disk.list(&bundle).map_err(|cause| failed(&bundle, cause))?.contains(&config) {
            found.insert(name, config);
        }
    }
    Ok(found)
}

/// Why an environment was not written. What was written before the failure stays: remove the folder, then try again.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The folder has something in it.
    #[error("{}: is not empty: name a new folder, nothing is ever overwritten", folder.display())]
    Exists {
        /// Which folder.
        folder: PathBuf,
    },
    /// The plan cannot be.
    #[error("{problem}")]
    Plan {
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The directory that follows from the plan would be refused.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A key could not be made or written.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The operating system gave no randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// What is signed and kept is not what it should be.
    #[error("{}: {problem}", path.display())]
    Kept {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The file system refused.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl EnvironmentError {
    /// Whether trying again, in a new folder, can help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Key(cause) => cause.retryable(),
            Self::Randomness(_) => true,
            _ => false,
        }
    }
}

/// Every secret of a new environment.
struct Secrets {
    operator: OperatorKey,
    nodes: BTreeMap<NodeName, NodeKeys>,
    rings: BTreeMap<DestinationName, KeyRing>,
    senders: BTreeMap<SenderName, SenderKey>,
    readers: BTreeMap<ReaderName, ReaderKey>,
}

/// Makes all keys and writes the environment into `folder`, which must be absent or empty. Blocks. Errors:
/// [`EnvironmentError`].
pub fn write(plan: &Plan, folder: &Path, seams: &Seams) -> Result<Written, EnvironmentError> {
    write_serving(plan, &Serving::default(), folder, seams)
}

/// As [`write()`], with nodes that serve elsewhere. Errors: [`EnvironmentError`].
pub fn write_serving(
    plan: &Plan,
    serving: &Serving,
    folder: &Path,
    seams: &Seams,
) -> Result<Written, EnvironmentError> {
    if plan.destinations.is_empty() {
        return Err(EnvironmentError::Plan { problem: "name at least one destination".to_owned() });
    }
    if let TransportSettings::Kafka { properties, .. } = &plan.transport {
        let plain =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if let Some(name) = properties.keys().find(|name| !plain(name) || name.starts_with('.')) {
            return Err(EnvironmentError::Plan { problem: format!("{name:?} is no name of a Kafka property") });
        }
    }
    let files = Files { root: folder, disk: &*seams.disk, written: Vec::new() };
    if !seams.disk.list(folder).map_err(files.failed(folder))?.is_empty() {
        return Err(EnvironmentError::Exists { folder: folder.to_path_buf() });
    }
    let environment = EnvironmentId(seams.randomness.array()?);
    let secrets = Secrets::draw(plan, environment, seams)?;
    let draft = draft(plan, environment, &secrets, seams)?;
    let signed = draft.sign(secrets.operator.signing())?;
    let directory = Directory::verify(&signed, &secrets.operator.signing().public(), draft.version)?;
    files.write(plan, serving, &secrets, &draft, directory, seams)
}

impl Secrets {
    fn draw(plan: &Plan, environment: EnvironmentId, seams: &Seams) -> Result<Self, EnvironmentError> {
        let randomness = &*seams.randomness;
        let mut secrets = Self {
            operator: OperatorKey::generate(randomness)?,
            nodes: BTreeMap::new(),
            rings: BTreeMap::new(),
            senders: BTreeMap::new(),
            readers: BTreeMap::new(),
        };
        for name in plan.nodes.keys() {
            secrets.nodes.insert(name.clone(), NodeKeys::generate(randomness)?);
        }
        for name in &plan.destinations {
            let suites = [Suite::X25519, Suite::XWing];
            secrets.rings.insert(name.clone(), KeyRing::generate(environment, name.clone(), &suites, randomness)?);
        }
        for name in &plan.senders {
            secrets.senders.insert(name.clone(), SenderKey::generate(randomness)?);
        }
        for name in &plan.readers {
            secrets.readers.insert(name.clone(), ReaderKey::generate(randomness)?);
        }
        Ok(secrets)
    }
}

fn draft(plan: &Plan, environment: EnvironmentId, secrets: &Secrets, seams: &Seams) -> Result<Draft, EnvironmentError> {
    let valid_until = seams.clock.now().after(plan.valid_for);
    // Whole seconds, for the eye.
    let valid_until = Time(valid_until.0 - valid_until.0 % 1000);
    let mut draft = Draft::new(environment, plan.name.clone(), valid_until);
    for (name, address) in &plan.nodes {
        if let Some(keys) = secrets.nodes.get(name) {
            draft.add_node(keys.entry(name.clone(), address.clone()));
        }
    }
    for (name, ring) in &secrets.rings {
        let voters = plan.nodes.keys().cloned();
        let mut entry = DestinationEntry::new(environment, name.clone(), voters, ring.public_keys());
        entry.minimum_suite = plan.minimum_suite;
        draft.add_destination(entry);
    }
    for (name, key) in &secrets.senders {
        draft.add_sender(key.entry(name.clone(), plan.destinations.iter().cloned()));
    }
    for (name, key) in &secrets.readers {
        draft.add_reader(key.entry(name.clone(), plan.destinations.iter().cloned()));
    }
    Ok(draft)
}

struct Files<'a> {
    root: &'a Path,
    disk: &'a dyn Disk,
    written: Vec<PathBuf>,
}

impl Files<'_> {
    fn failed(&self, path: &Path) -> impl FnOnce(std::io::Error) -> EnvironmentError + use<> {
        let path = path.to_path_buf();
        move |cause| EnvironmentError::Io { path, cause }
    }

    fn folder(&self, name: &Path) -> Result<PathBuf, EnvironmentError> {
        let path = self.root.join(name);
        self.disk.create_folder(&path).map_err(self.failed(&path))?;
        Ok(path)
    }

    fn text(&mut self, path: PathBuf, bytes: &[u8]) -> Result<(), EnvironmentError> {
        let file = self.disk.create_new(&path).map_err(self.failed(&path))?;
        file.write_at(bytes, 0).and_then(|()| file.sync()).map_err(self.failed(&path))?;
        self.written.push(path);
        Ok(())
    }

    /// Writes those of the Kafka client's properties that do not stand in a configuration itself into its folder.
    fn properties(&mut self, plan: &Plan, bundle: &Path) -> Result<(), EnvironmentError> {
        let TransportSettings::Kafka { properties, .. } = &plan.transport else { return Ok(()) };
        for (name, value) in properties.iter().filter(|(name, value)| apart(name, value)) {
            self.text(bundle.join(name), value.as_bytes())?;
        }
        Ok(())
    }

    fn secret(&mut self, path: PathBuf, key: &impl SecretFile, seams: &Seams) -> Result<(), EnvironmentError> {
        key.write(&path, seams.clock.now(), self.disk)?;
        self.written.push(path);
        Ok(())
    }

    fn write(
        mut self,
        plan: &Plan,
        serving: &Serving,
        secrets: &Secrets,
        draft: &Draft,
        directory: Directory,
        seams: &Seams,
    ) -> Result<Written, EnvironmentError> {
        let operator = self.folder(Path::new("operator"))?;
        let operator_key = operator.join("operator.key");
        let rings = self.folder(Path::new("operator/destinations"))?;
        let public = secrets.operator.signing().public();
        let texts = Texts::of_plan(plan, public.bytes());
        self.secret(operator_key.clone(), &secrets.operator, seams)?;
        self.text(operator.join("directory.toml"), draft.to_toml()?.as_bytes())?;
        self.text(operator.join("directory"), directory.bytes())?;
        self.text(operator.join(TRANSPORT_FILE), texts.kept().as_bytes())?;
        self.properties(plan, &operator)?;
        for (name, ring) in &secrets.rings {
            self.secret(rings.join(format!("{name}.key")), ring, seams)?;
        }
        let (mut nodes, mut senders, mut readers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, keys) in &secrets.nodes {
            let address = plan.nodes.get(name).map_or("", String::as_str);
            let text = texts.node(name, address, serving)?;
            let config =
                self.bundle(NODES, name.as_str(), ("node.toml", &text), ("node.key", keys), &directory, seams)?;
            self.properties(plan, config.parent().unwrap_or(&config))?;
            let rings: Vec<_> = secrets.rings.values().collect();
            self.key_rings(name, &rings, &directory, seams)?;
            nodes.insert(name.clone(), config);
        }
        for (name, key) in &secrets.senders {
            let text = texts.sender(name, plan.suite);
            let config =
                self.bundle(SENDERS, name.as_str(), ("client.toml", &text), ("sender.key", key), &directory, seams)?;
            self.properties(plan, config.parent().unwrap_or(&config))?;
            senders.insert(name.clone(), config);
        }
        for (name, key) in &secrets.readers {
            let text = texts.reader(name);
            let config =
                self.bundle(READERS, name.as_str(), ("client.toml", &text), ("reader.key", key), &directory, seams)?;
            readers.insert(name.clone(), config);
        }
        self.sync()?;
        Ok(Written {
            folder: self.root.to_path_buf(),
            directory,
            operator: public.bytes(),
            operator_key,
            nodes,
            senders,
            readers,
            files: self.written,
        })
    }

    /// A folder for one machine: configuration, directory and keys. Gives the configuration's path.
    fn bundle(
        &mut self,
        kind: &str,
        name: &str,
        (config, text): (&str, &str),
        (key_file, key): (&str, &impl SecretFile),
        directory: &Directory,
        seams: &Seams,
    ) -> Result<PathBuf, EnvironmentError> {
        let folder = self.folder(&Path::new(kind).join(name))?;
        let config = folder.join(config);
        self.text(config.clone(), text.as_bytes())?;
        self.text(folder.join("directory"), directory.bytes())?;
        self.secret(folder.join(key_file), key, seams)?;
        Ok(config)
    }

    /// Seals key rings to a node of the directory, into its folder. Gives the files.
    fn key_rings(
        &mut self,
        node: &NodeName,
        rings: &[&KeyRing],
        directory: &Directory,
        seams: &Seams,
    ) -> Result<Vec<PathBuf>, EnvironmentError> {
        let folder = self.folder(&Path::new(NODES).join(node.as_str()).join("destinations"))?;
        let mut files = Vec::new();
        if let Some(entry) = directory.nodes.get(node) {
            for ring in rings {
                let path = folder.join(format!("{}.keyring", ring.destination()));
                ring.write_sealed(&path, entry, &*seams.randomness, self.disk)?;
                self.written.push(path.clone());
                files.push(path);
            }
        }
        Ok(files)
    }

    /// Makes the entries of all written files durable.
    fn sync(&self) -> Result<(), EnvironmentError> {
        let folders: BTreeSet<_> = self
            .written
            .iter()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|path| path.starts_with(self.root))
            .collect();
        for folder in folders {
            self.disk.sync_folder(folder).map_err(self.failed(folder))?;
        }
        Ok(())
    }
}

/// Whether a property's value goes into a file of its own, named like the property, rather than into the configuration.
fn apart(name: &str, value: &str) -> bool {
    holds_secret(name) || value.contains('\n')
}
