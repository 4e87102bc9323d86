//! `sealcast directory`: the signed list of who exists, from the first draft to the verified file.

mod edit;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::keys::{operator_key, read_directory, read_draft};
use super::{CliError, Context, Exit, Row};
use crate::core::directory::{Directory, Draft, FIRST_LINE, KeyState, Span, Validity, read_time, write_time};
use crate::core::id::{DestinationName, EnvironmentId, EnvironmentName, NodeName, ReaderName, SenderName, Suite, Time};
use crate::keys::{OperatorKey, SecretFile};

/// Makes, changes, signs, shows and verifies the directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealcast directory add sender web --public web.pub --destinations orders
  sealcast directory sign --operator operator.key -o directory
  sealcast directory verify directory --operator operator.pub")]
pub(super) struct DirectoryCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Makes an empty draft of a new environment
    #[command(after_help = "Example:\n  sealcast directory create shop -o directory.toml")]
    Create(Create),
    /// Adds an entry to a draft, or with --replace changes one
    #[command(after_help = "\
Examples:
  sealcast directory add node a --address 10.0.0.1:7401 --public a.pub
  sealcast directory add destination orders --public orders.pub --nodes a,b,c
  sealcast directory add sender web --public web.pub --destinations orders")]
    Add {
        #[command(subcommand)]
        entry: Add,
        /// The draft
        #[arg(short, long, global = true, value_name = "FILE", default_value = "directory.toml")]
        directory: PathBuf,
        /// Put it in the place of an entry of this name that differs
        #[arg(long, global = true)]
        replace: bool,
    },
    /// Removes an entry from a draft
    #[command(after_help = "Example:\n  sealcast directory remove sender web")]
    Remove {
        /// What sort of entry
        #[arg(value_enum)]
        kind: Kind,
        /// Its name
        name: String,
        /// The draft
        #[arg(short, long, value_name = "FILE", default_value = "directory.toml")]
        directory: PathBuf,
    },
    /// Checks a draft and signs it; where a signed directory is there already, the version goes one up
    #[command(after_help = "Example:\n  sealcast directory sign directory.toml --operator operator.key -o directory")]
    Sign {
        /// The draft
        #[arg(value_name = "FILE", default_value = "directory.toml")]
        draft: PathBuf,
        /// The operator's secret key file
        #[arg(long, value_name = "FILE")]
        operator: PathBuf,
        /// The signed directory
        #[arg(short, long, value_name = "FILE", default_value = "directory")]
        output: PathBuf,
        /// A new end of validity, from now, for example 365d
        #[arg(long, value_name = "TIME")]
        valid_for: Option<Span>,
    },
    /// Prints what a draft or a signed directory lists, without verifying it
    #[command(after_help = "Example:\n  sealcast directory show directory")]
    Show {
        /// The file
        #[arg(value_name = "FILE", default_value = "directory")]
        file: PathBuf,
    },
    /// Verifies a signed directory
    #[command(after_help = "Example:\n  sealcast directory verify directory --operator operator.pub")]
    Verify {
        /// The file
        #[arg(value_name = "FILE", default_value = "directory")]
        file: PathBuf,
        /// The operator's public key: 64 hexadecimal digits or a key file
        #[arg(long, value_name = "KEY")]
        operator: String,
        /// Refuse lower versions
        #[arg(long, default_value_t = 1, value_name = "N")]
        minimum_version: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The environment's name, part of its topics' names
    name: EnvironmentName,
    /// The environment's id, 32 hexadecimal digits; default a random one
    #[arg(long, value_name = "ID")]
    environment: Option<EnvironmentId>,
    /// How long it will be valid, from now
    #[arg(long, value_name = "TIME", default_value = "365d")]
    valid_for: Span,
    /// Until when it will be valid, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = |text: &str| read_time(text), conflicts_with = "valid_for")]
    valid_until: Option<Time>,
    /// The draft, which must not exist yet
    #[arg(short, long, value_name = "FILE", default_value = "directory.toml")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Node,
    Destination,
    Sender,
    Reader,
}

#[derive(Debug, clap::Subcommand)]
enum Add {
    /// A node
    #[command(after_help = "Example:\n  sealcast directory add node a --address 10.0.0.1:7401 --public a.pub")]
    Node {
        /// Its name
        name: NodeName,
        /// Where others reach it
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
        /// Its public keys: a .pub file
        #[arg(long, value_name = "FILE")]
        public: PathBuf,
    },
    /// A destination; what is not given stays as it was, or gets its default
    #[command(after_help = "\
Examples:
  sealcast directory add destination orders --public orders.pub --nodes a,b,c
  sealcast directory add destination orders --max-life 2d")]
    Destination {
        /// Its name
        name: DestinationName,
        /// Its public keys: a .pub file; keys that it does not name become retired
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
        /// The voters
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        nodes: Vec<NodeName>,
        /// Refuse parcels of a lower suite; default x25519, the lowest
        #[arg(long, value_name = "SUITE")]
        minimum_suite: Option<Suite>,
        /// The longest life of a transaction; default 7d
        #[arg(long, value_name = "TIME")]
        max_life: Option<Span>,
        /// How long an idempotency key is claimed; default 1d
        #[arg(long, value_name = "TIME")]
        idempotency_window: Option<Span>,
        /// How long committed transactions are kept; default 30d
        #[arg(long, value_name = "TIME")]
        retention: Option<Span>,
    },
    /// A sender
    #[command(after_help = "Example:\n  sealcast directory add sender web --public web.pub --destinations orders")]
    Sender {
        /// Its name
        name: SenderName,
        /// Its public key: a .pub file
        #[arg(long, value_name = "FILE")]
        public: PathBuf,
        /// Where it may send
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        destinations: Vec<DestinationName>,
    },
    /// A reader
    #[command(after_help = "Example:\n  sealcast directory add reader app --public app.pub --destinations orders")]
    Reader {
        /// Its name
        name: ReaderName,
        /// Its public keys: a .pub file
        #[arg(long, value_name = "FILE")]
        public: PathBuf,
        /// What it may read
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        destinations: Vec<DestinationName>,
    },
}

#[derive(Serialize)]
struct Listed {
    kind: &'static str,
    name: String,
    about: String,
}

impl Row for Listed {
    const HEADS: &'static [&'static str] = &["kind", "name", "about"];

    fn cells(&self) -> Vec<String> {
        vec![self.kind.to_owned(), self.name.clone(), self.about.clone()]
    }
}

#[derive(Serialize)]
struct State {
    file: String,
    environment: EnvironmentName,
    environment_id: EnvironmentId,
    version: u64,
    valid_until: String,
    validity: &'static str,
}

impl Row for State {
    const HEADS: &'static [&'static str] = &["file", "environment", "id", "version", "valid until", "validity"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.file.clone(),
            self.environment.to_string(),
            self.environment_id.to_string(),
            self.version.to_string(),
            self.valid_until.clone(),
            self.validity.to_owned(),
        ]
    }
}

impl DirectoryCommand {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        match self.action {
            Action::Create(command) => command.run(context)?,
            Action::Add { entry, directory, replace } => {
                let mut draft = read_draft(&directory)?;
                edit::add(&mut draft, entry, replace)?;
                save_draft(&draft, &directory)?;
                context.output.rows(&listed(&draft))?;
            }
            Action::Remove { kind, name, directory } => {
                let mut draft = read_draft(&directory)?;
                edit::remove(&mut draft, kind, &name)?;
                save_draft(&draft, &directory)?;
                context.output.rows(&listed(&draft))?;
            }
            Action::Sign { draft, operator, output, valid_for } => {
                let directory = sign(&draft, &operator, &output, valid_for, context)?;
                context.output.rows(&[state(&output, &directory, context)])?;
            }
            Action::Show { file } => {
                let draft = read_either(&file)?;
                let head = Listed {
                    kind: "environment",
                    name: draft.name.to_string(),
                    about: format!(
                        "{}, version {}, valid until {}, grace {}",
                        draft.environment,
                        draft.version,
                        write_time(draft.valid_until),
                        Span(draft.grace)
                    ),
                };
                let mut rows = vec![head];
                rows.extend(listed(&draft));
                context.output.rows(&rows)?;
            }
            Action::Verify { file, operator, minimum_version } => {
                let directory = read_directory(&file, &operator_key(&operator)?, minimum_version)?;
                context.output.rows(&[state(&file, &directory, context)])?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<(), CliError> {
        let environment = match self.environment {
            Some(id) => id,
            None => {
                let drawn = context.seams.randomness.array();
                EnvironmentId(drawn.map_err(|error| CliError::new(Exit::Unavailable, error))?)
            }
        };
        let valid_until = self.valid_until.unwrap_or_else(|| context.seams.clock.now().after(self.valid_for.0));
        let draft = Draft::new(environment, self.name, valid_until);
        let mut file = std::fs::File::create_new(&self.output).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                CliError::failed(format!("{}: is there already: name another with -o", self.output.display()))
            }
            _ => CliError::file(&self.output, &error),
        })?;
        std::io::Write::write_all(&mut file, draft.to_toml()?.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| CliError::file(&self.output, &error))?;
        let made = serde_json::json!({
            "file": self.output.display().to_string(), "environment": draft.name, "environment_id": environment,
        });
        if context.output.is_json() {
            context.output.object(&made)?;
        } else {
            let (file, name) = (self.output.display(), &draft.name);
            context.output.line(&format!("{file}: a draft of environment {name}, id {environment}"))?;
        }
        Ok(())
    }
}

/// Signs the draft; both files are replaced as wholes, the draft with its new version first.
fn sign(
    draft_file: &Path,
    operator: &Path,
    output: &Path,
    valid_for: Option<Span>,
    context: &Context,
) -> Result<Directory, CliError> {
    let operator = OperatorKey::read(operator)?;
    let public = operator.signing().public();
    let mut draft = read_draft(draft_file)?;
    if let Some(span) = valid_for {
        draft.valid_until = context.seams.clock.now().after(span.0);
    }
    let before = match output.try_exists().map_err(|error| CliError::file(output, &error))? {
        true => Some(read_directory(output, &public, 1)?),
        false => None,
    };
    if let Some(before) = &before {
        draft.version = draft.version.max(before.version.saturating_add(1));
    }
    let bytes = draft.sign(operator.signing()).map_err(|error| wrong(draft_file, error))?;
    let directory = Directory::verify(&bytes, &public, draft.version)?;
    if let Some(before) = &before {
        directory.check_successor_of(before).map_err(|error| wrong(output, error))?;
    }
    save_draft(&draft, draft_file)?;
    replace(output, &bytes)?;
    Ok(directory)
}

fn save_draft(draft: &Draft, file: &Path) -> Result<(), CliError> {
    replace(file, draft.to_toml()?.as_bytes())
}

/// Replaces a file as a whole: its old text or its new one, never half of it.
fn replace(file: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut temporary| {
        std::io::Write::write_all(&mut temporary, bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(file).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    });
    written.map_err(|error| CliError::file(file, &error))
}

/// A draft, or a signed directory without its signature.
fn read_either(file: &Path) -> Result<Draft, CliError> {
    let text =
        std::fs::read_to_string(file).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    let unsigned = match text.strip_prefix(FIRST_LINE) {
        Some(rest) => rest.split_once('\n').map_or("", |(_, unsigned)| unsigned),
        None => &text,
    };
    Draft::from_toml(unsigned).map_err(|error| wrong(file, error))
}

fn names<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "nowhere".to_owned() } else { names.join(", ") }
}

fn listed(draft: &Draft) -> Vec<Listed> {
    let nodes = draft.nodes.values().map(|node| Listed {
        kind: "node",
        name: node.name.to_string(),
        about: format!("at {}, signing {}", node.address, node.signing.bytes()),
    });
    let destinations = draft.destinations.values().map(|entry| {
        let current = entry.keys.iter().filter(|key| key.state == KeyState::Current);
        let keys = names(current.map(|key| format!("{} {}", key.suite, key.id)));
        Listed {
            kind: "destination",
            name: entry.name.to_string(),
            about: format!("on {}, current keys {keys}", names(&entry.nodes)),
        }
    });
    let senders = draft.senders.values().map(|entry| Listed {
        kind: "sender",
        name: entry.name.to_string(),
        about: format!("sends to {}, signing {}", names(&entry.destinations), entry.signing.bytes()),
    });
    let readers = draft.readers.values().map(|entry| Listed {
        kind: "reader",
        name: entry.name.to_string(),
        about: format!("reads {}, signing {}", names(&entry.destinations), entry.signing.bytes()),
    });
    nodes.chain(destinations).chain(senders).chain(readers).collect()
}

fn state(file: &Path, directory: &Directory, context: &Context) -> State {
    State {
        file: file.display().to_string(),
        environment: directory.name.clone(),
        environment_id: directory.environment,
        version: directory.version,
        valid_until: write_time(directory.valid_until),
        validity: match directory.validity(context.seams.clock.now()) {
            Validity::Good => "good",
            Validity::Ending { .. } => "ending",
            Validity::Ended => "ended",
            Validity::GraceEnded => "grace-ended",
        },
    }
}

fn wrong(file: &Path, problem: impl std::fmt::Display) -> CliError {
    CliError::usage(format!("{}: {problem}", file.display()))
}
