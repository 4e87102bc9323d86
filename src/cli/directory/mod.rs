//! `sealcast directory`: the signed list of who exists, from the first draft to what nodes have in force.
//!
//! - [`edit`] changes a draft, [`signing`] shows what changes, signs it and says what to do with it;
//! - [`status`] asks the nodes which version each has in force.

mod edit;
pub(super) mod signing;
mod status;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::keys::{operator_key, read_directory};
use super::{CliError, Context, Exit, Row};
use crate::core::directory::{Directory, Draft, FIRST_LINE, KeyState, Span, Validity, read_time, write_time};
use crate::core::id::{DestinationName, EnvironmentId, EnvironmentName, NodeName, ReaderName, SenderName, Suite, Time};
use signing::Desk;

/// Makes, changes, signs, shows and verifies the directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealcast directory add sender web --public web.pub --destinations orders
  sealcast directory add sender shop --destinations orders --operator operator.key
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
    /// Adds an entry to a draft (the directory as it is written, before the operator signs it), or with --replace changes
    /// one; with --operator all at once: makes its keys and folder, shows what changes, and signs
    #[command(after_help = "\
With --operator the next version of the directory is signed, beside the key, and where there is no --public keys are made: \
the new sender's, reader's or node's folder is for its machine, a new destination's keys are sealed to each of its nodes. \
What follows says which files go where, and how it comes in force.

Examples:
  sealcast directory add node a --address 10.0.0.1:7401 --public a.pub
  sealcast directory add destination orders --public orders.pub --nodes a,b,c
  sealcast directory add sender web --public web.pub --destinations orders
  sealcast directory add sender shop --destinations orders --operator operator.key
  sealcast directory add reader audit --destinations orders --operator operator.key
  sealcast directory add destination bills --operator operator.key")]
    Add {
        #[command(subcommand)]
        entry: Add,
        #[command(flatten)]
        desk: Desk,
        /// Put it in the place of an entry of this name that differs; its keys stay, unless --public gives others
        #[arg(long, global = true)]
        replace: bool,
    },
    /// Removes an entry from a draft; with --operator all at once: shows what changes, and signs
    #[command(after_help = "\
Examples:
  sealcast directory remove sender web
  sealcast directory remove sender shop --operator operator.key")]
    Remove {
        /// What sort of entry
        #[arg(value_enum)]
        kind: Kind,
        /// Its name
        name: String,
        #[command(flatten)]
        desk: Desk,
    },
    /// Checks a draft, shows what changes, and signs it; where a signed directory is there already, the version goes one up
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
    /// Asks the nodes which version each has in force, for each of its destinations
    #[command(after_help = "\
Examples:
  sealcast directory status --config readers/app/client.toml
  sealcast directory status operator/directory --wait 30s --config readers/app/client.toml

Exit codes: 3 when the version of the file is not in force everywhere, 5 when a node does not answer.")]
    Status(status::Status),
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
        public: Option<PathBuf>,
    },
    /// A destination; what is not given stays as it was, or gets its default
    #[command(after_help = "\
Examples:
  sealcast directory add destination orders --public orders.pub --nodes a,b,c
  sealcast directory add destination orders --max-life 2d
  sealcast directory add destination bills --operator operator.key")]
    Destination {
        /// Its name
        name: DestinationName,
        /// Its public keys: a .pub file; keys that it does not name become retired
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
        /// The voters; default of a new one: all nodes
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        nodes: Vec<NodeName>,
        /// Senders that may send there, beside those that may already
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        senders: Vec<SenderName>,
        /// Readers that may read it, beside those that may already
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        readers: Vec<ReaderName>,
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
    #[command(after_help = "\
Examples:
  sealcast directory add sender web --public web.pub --destinations orders
  sealcast directory add sender shop --destinations orders --operator operator.key")]
    Sender {
        /// Its name
        name: SenderName,
        /// Its public key: a .pub file
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
        /// The suite that it seals with, in its new client.toml
        #[arg(long, default_value_t = Suite::XWing)]
        suite: Suite,
        /// Where it may send
        #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
        destinations: Vec<DestinationName>,
    },
    /// A reader
    #[command(after_help = "\
Examples:
  sealcast directory add reader app --public app.pub --destinations orders
  sealcast directory add reader audit --destinations orders --operator operator.key")]
    Reader {
        /// Its name
        name: ReaderName,
        /// Its public keys: a .pub file
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
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
            Action::Add { entry, desk, replace } => {
                desk.change(context, |draft, makes| edit::add(draft, entry, replace, makes.then_some(&context.seams)))?
            }
            Action::Remove { kind, name, desk } => {
                desk.change(context, |draft, _| edit::remove(draft, kind, &name).map(|()| None))?;
            }
            Action::Sign { draft, operator, output, valid_for } => {
                signing::sign(draft, &operator, output, valid_for, context)?;
            }
            Action::Show { file } => show(&file, None, context)?,
            Action::Verify { file, operator, minimum_version } => {
                let directory = read_directory(&file, &operator_key(&operator)?, minimum_version)?;
                context.output.rows(&[state(&file, &directory, context)])?;
            }
            Action::Status(command) => return command.run(context),
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

/// Prints what a draft or a signed directory lists; and what is known of its signature, if that was looked at.
pub(super) fn show(file: &Path, signature: Option<String>, context: &Context) -> Result<(), CliError> {
    let draft = read_either(file)?;
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
    rows.extend(signature.map(|about| Listed { kind: "signature", name: "operator".to_owned(), about }));
    rows.extend(listed(&draft));
    context.output.rows(&rows)?;
    Ok(())
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
