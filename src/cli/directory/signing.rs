//! Showing what changes, signing it, and saying how it comes in force.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::keys::read_draft;
use crate::cli::quote::{quoted, word};
use crate::cli::{CliError, Context, Row};
use crate::config::environment::{Added, Keeper, New, Places, replace};
use crate::config::{NodeConfig, Sources, TransportSettings};
use crate::core::directory::{Change, Difference, Directory, Draft, Span, differences};
use crate::core::id::NodeName;

/// The operator's desk: which draft is changed, and whether it is signed at once.
#[derive(Debug, clap::Args)]
pub(super) struct Desk {
    /// The draft; default directory.toml, beside the operator's key where that is given
    #[arg(short, long, global = true, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// The operator's secret key file: sign the next version at once
    #[arg(long, global = true, value_name = "FILE")]
    operator: Option<PathBuf>,
    /// The environment's folder, below which folders of who is new are made; default that of the operator's key, or the
    /// one above when that is called operator
    #[arg(short, long, global = true, value_name = "DIR", requires = "operator")]
    output: Option<PathBuf>,
    /// A file whose [transport] new configurations get; default transport.toml, beside the operator's key
    #[arg(long, global = true, value_name = "FILE", requires = "operator")]
    transport: Option<PathBuf>,
    /// Show what would change, and write nothing
    #[arg(long, global = true)]
    dry_run: bool,
}

impl Row for Difference {
    const HEADS: &'static [&'static str] = &["change", "kind", "name", "field", "before", "after"];

    fn cells(&self) -> Vec<String> {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.change.to_string(),
            self.kind.to_owned(),
            self.name.clone(),
            self.field.to_owned(),
            shown(&self.before),
            shown(&self.after),
        ]
    }
}

/// What a command did, as JSON says it.
#[derive(Serialize)]
struct Told<'a> {
    changes: &'a [Difference],
    signed: bool,
    file: String,
    version: u64,
    before: Option<u64>,
    config: Option<String>,
    key_rings: Vec<String>,
    next: Vec<String>,
}

impl Desk {
    /// Changes the draft, or the draft and the directory that is signed from it. `edit` is told whether it may make keys.
    pub(super) fn change(
        self,
        context: &Context,
        edit: impl FnOnce(&mut Draft, bool) -> Result<Option<New>, CliError>,
    ) -> Result<(), CliError> {
        let Some(operator) = self.operator else {
            let file = self.directory.unwrap_or_else(|| PathBuf::from("directory.toml"));
            let mut draft = read_draft(&file)?;
            let before = draft.clone();
            edit(&mut draft, false)?;
            let changes = differences(Some(&before), &draft);
            if !self.dry_run {
                replace(&*context.seams.disk, &file, draft.to_toml()?.as_bytes())?;
            }
            let version = draft.version;
            let shown = file.display();
            let then = match (self.dry_run, changes.is_empty()) {
                (true, _) => "Nothing was written.".to_owned(),
                (_, true) => format!("{shown}: nothing changes."),
                _ => format!("{shown}: changed, and not signed yet: `sealcast directory sign` does that."),
            };
            let told = Told {
                changes: &changes,
                signed: false,
                file: shown.to_string(),
                version,
                before: None,
                config: None,
                key_rings: Vec::new(),
                next: Vec::new(),
            };
            return tell(context, &told, &then);
        };
        let places =
            Places { draft: self.directory, transport: self.transport, environment: self.output, ..Places::default() };
        let mut keeper = Keeper::open(&operator, places)?;
        let unsigned = !keeper.changes().is_empty() && keeper.before().is_some();
        let new = edit(&mut keeper.draft, true)?;
        if unsigned {
            context.output.note("the draft had changes that were not signed yet: they are among those shown here");
        }
        finish(keeper, new, self.dry_run, context)
    }
}

/// `sealcast directory sign`.
pub(super) fn sign(
    draft: PathBuf,
    operator: &Path,
    output: PathBuf,
    valid_for: Option<Span>,
    context: &Context,
) -> Result<(), CliError> {
    let places = Places { draft: Some(draft), signed: Some(output), ..Places::default() };
    let mut keeper = Keeper::open(operator, places)?;
    if let Some(span) = valid_for {
        keeper.draft.valid_until = context.seams.clock.now().after(span.0);
    }
    finish(keeper, None, false, context)
}

/// Shows what changes, signs, and says what to do next.
fn finish(mut keeper: Keeper, new: Option<New>, dry_run: bool, context: &Context) -> Result<(), CliError> {
    let changes = keeper.changes();
    let next = keeper.next_directory()?;
    for refused in keeper.refused_by_running(&next) {
        context.output.note(&format!("nodes that run refuse this directory: {refused}"));
    }
    let before = keeper.before().map(|before| before.version);
    let environment = keeper.environment().to_path_buf();
    let destination = match &new {
        Some(New::Destination(ring)) => Some(ring.destination().to_string()),
        _ => None,
    };
    let mut told = Told {
        changes: &changes,
        signed: false,
        file: String::new(),
        version: next.version,
        before,
        config: None,
        key_rings: Vec::new(),
        next: Vec::new(),
    };
    if dry_run {
        return tell(context, &told, &format!("Nothing was written: version {} would be signed.", next.version));
    }
    if let (true, Some(before)) = (changes.is_empty(), before) {
        return tell(context, &told, &format!("Nothing changes: version {before} stays."));
    }
    let added = keeper.sign(new, &context.seams)?;
    told.signed = true;
    told.file = added.signed_file.display().to_string();
    told.config = added.config.as_ref().map(|path| path.display().to_string());
    told.key_rings = added.key_rings.values().map(|path| path.display().to_string()).collect();
    let mut text = format!("{}: version {} is signed.\n", told.file, next.version);
    if let Some(folder) = added.config.as_deref().and_then(Path::parent) {
        text.push_str(&format!("{}: the new folder, for its machine alone.\n", folder.display()));
    }
    if before.is_some() {
        told.next = match &destination {
            None => of_directory(&added, &environment, &changes),
            Some(_) => of_destination(&added, &environment, &changes),
        };
        text.push_str(match &destination {
            None => {
                "\nIt comes in force by the log: one node that is given the directory and a SIGHUP is enough; all nodes have \
                 it then, and clients hear of it. Next:\n"
            }
            Some(_) => {
                "\nEvery node of the new destination needs the directory and its keys, and serves it after a restart; what it \
                 serves already goes on while nodes restart one after the other. Next:\n"
            }
        });
        for command in &told.next {
            text.push_str(&format!("  {command}\n"));
        }
    }
    tell(context, &told, text.trim_end())
}

/// A table of changes and a text, or one object.
fn tell(context: &Context, told: &Told<'_>, text: &str) -> Result<(), CliError> {
    if context.output.is_json() {
        context.output.object(told)?;
        return Ok(());
    }
    if !told.changes.is_empty() {
        context.output.rows(told.changes)?;
        context.output.line("")?;
    }
    context.output.line(text)?;
    Ok(())
}

/// How a file comes to a node, and how a command runs there.
struct Machine {
    /// `HOST`, or nothing for this machine.
    host: Option<String>,
    /// The node's folder there.
    folder: PathBuf,
    /// The environment's folder, where one process runs all its nodes: `sealcast dev`.
    dev: Option<PathBuf>,
}

impl Machine {
    fn of(directory: &Directory, node: &NodeName, environment: &Path) -> Self {
        let address = directory.nodes.get(node).map_or("", |entry| entry.address.as_str());
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        if is_loopback(host) {
            let folder = environment.join("nodes").join(node.as_str());
            let config = NodeConfig::load(&Sources::file(folder.join("node.toml")));
            let settings = config.ok().and_then(|config| config.transport().ok());
            let embedded = matches!(settings, Some(TransportSettings::Embedded { .. }));
            return Self { host: None, folder, dev: embedded.then(|| environment.to_path_buf()) };
        }
        Self { host: Some(host.to_owned()), folder: PathBuf::from(node.as_str()), dev: None }
    }

    fn copy(&self, from: &Path, to: &str) -> String {
        let (from, to) = (quoted(from), quoted(&self.folder.join(to)));
        match &self.host {
            None => format!("cp {from} {to}"),
            Some(host) => format!("scp -p {from} {host}:{to}"),
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    fn run(&self, command: &str) -> String {
        match &self.host {
            None => command.to_owned(),
            Some(host) => format!("ssh {host} \"{command}\""),
        }
    }

    /// What finds the node's process, and never the shell that looks for it.
    fn pattern(&self) -> String {
        if let Some(environment) = &self.dev {
            // Whichever way it was named.
            let folder = environment.canonicalize().unwrap_or_else(|_| environment.clone());
            return word(&format!("[s]ealcast dev .*{}", folder.file_name().unwrap_or_default().display()));
        }
        word(&format!("[n]ode run --config {}", self.config().display()))
    }

    fn hang_up(&self) -> String {
        self.run(&format!("pkill -HUP -f {}", self.pattern()))
    }

    fn restart(&self) -> String {
        let (pattern, config) = (self.pattern(), quoted(&self.config()));
        let ended = format!("pkill -TERM -f {pattern}; while pgrep -f {pattern} >/dev/null; do sleep 0.2; done");
        match (&self.host, &self.dev) {
            // Its next start is a command of its own: a shell whose line has both would find itself.
            (None, Some(_)) => ended,
            (None, None) => format!("{ended}; sealcast node run --config {config} &"),
            (Some(host), _) => {
                // A node's name, which means nothing to a shell.
                let name = self.folder.display();
                format!("ssh -f {host} \"{ended}; sealcast node run --config {config} 2>>{name}.log\"")
            }
        }
    }
}

/// Whether this host is the machine that the command runs on, whichever that is.
pub(in crate::cli) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How the version in force is asked for, once it must be there.
fn asked(added: &Added, environment: &Path) -> Option<String> {
    let reader = added.directory.readers.keys().next()?;
    let config = environment.join("readers").join(reader.as_str()).join("client.toml");
    let file = quoted(&added.signed_file);
    Some(format!("sealcast directory status {file} --wait 30s --config {}", quoted(&config)))
}

fn of_directory(added: &Added, environment: &Path, changes: &[Difference]) -> Vec<String> {
    let directory = &added.directory;
    let mut next = Vec::new();
    if let Some(node) = directory.nodes.keys().next() {
        let machine = Machine::of(directory, node, environment);
        next.push(machine.copy(&added.signed_file, "directory"));
        next.push(machine.hang_up());
    }
    next.extend(asked(added, environment));
    next.extend(for_clients(added, environment, changes));
    next
}

/// Senders and readers that may do more or less than before: one that runs hears of it, the next that starts has it in its
/// folder.
fn for_clients(added: &Added, environment: &Path, changes: &[Difference]) -> Vec<String> {
    let mut copies: Vec<_> = changes
        .iter()
        .filter(|one| one.change == Change::Changed)
        .filter_map(|one| {
            let kind = match one.kind {
                "sender" => "senders",
                "reader" => "readers",
                _ => return None,
            };
            let folder = environment.join(kind).join(&one.name);
            Some(format!("cp {} {}", quoted(&added.signed_file), quoted(&folder.join("directory"))))
        })
        .collect();
    copies.dedup();
    copies
}

fn of_destination(added: &Added, environment: &Path, changes: &[Difference]) -> Vec<String> {
    let directory = &added.directory;
    let mut next = Vec::new();
    for (node, ring) in &added.key_rings {
        let machine = Machine::of(directory, node, environment);
        next.push(machine.copy(&added.signed_file, "directory"));
        if machine.host.is_some() {
            next.push(machine.copy(ring, "destinations/"));
        }
    }
    if let Some(node) = added.key_rings.keys().next() {
        let machine = Machine::of(directory, node, environment);
        if machine.dev.is_some() {
            // It makes topics itself, and runs all nodes.
            next.push(machine.restart());
            next.push(format!("sealcast dev {} &", quoted(environment)));
            next.extend(asked(added, environment));
            next.extend(for_clients(added, environment, changes));
            return next;
        }
        let config = quoted(&machine.config());
        next.push(machine.run(&format!("sealcast topic init --config {config}")));
    }
    for node in added.key_rings.keys() {
        let machine = Machine::of(directory, node, environment);
        next.push(machine.restart());
    }
    next.extend(asked(added, environment));
    next.extend(for_clients(added, environment, changes));
    next
}
