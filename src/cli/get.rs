//! `sealcast get`: the bytes of a committed transaction, as they were submitted.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use super::session::{Asked, Fresh, Named, block_on, check_destination};
use super::status::transaction_of;
use super::{CliError, Context, Exit, progress};
use crate::client::reader::{Event, Feed, Reader};
use crate::core::id::{DestinationName, TransactionId};

/// Prints the payload of a committed transaction, or writes it to a file; adds no byte
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples, in the folder of a reader's client.toml:
  sealcast get 01939f6e-8d5c-7d2a-9a55-6b1f0d3c2b1a -o order.json
  sealcast get 01939f6e
  sealcast get -k customer-42
  sealcast get -d orders -k customer-42 --linearizable")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct Get {
    /// The transaction's id, first characters of it that name one transaction, or its ticket
    #[arg(group = "what", value_name = "ID|TICKET")]
    transaction: Option<Named>,

    /// The latest transaction of this ordering key instead
    #[arg(short, long, group = "what", value_name = "KEY")]
    key: Option<String>,

    /// The destination; needed with --key when there are several that may be read, and when several have the transaction
    #[arg(short, long, value_name = "DEST")]
    destination: Option<DestinationName>,

    /// The file to write; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    asked: Asked,

    #[command(flatten)]
    fresh: Fresh,
}

impl Get {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        block_on(async {
            let reader = self.asked.reader(context)?;
            let feed = self.feed(&reader).await?;
            match &self.output {
                Some(path) => to_file(feed, path).await?,
                None => {
                    copy(feed, &mut std::io::stdout().lock(), CliError::from).await?;
                }
            }
            Ok(Exit::Done)
        })
    }

    async fn feed(&self, reader: &Reader) -> Result<Feed, CliError> {
        let freshness = self.fresh.freshness();
        if let Some(destination) = &self.destination {
            check_destination(&reader.directory(), destination)?;
        }
        let destination = self.destination.as_ref();
        Ok(match (&self.key, &self.transaction) {
            (Some(key), _) => {
                let only = only_destination(reader);
                let destination = destination.map_or(only, |given| Ok(given.clone()))?;
                reader.get_by_key(&destination, key.as_bytes(), false, freshness).await?
            }
            (_, Some(Named::Whole(id))) => reader.get(*id, destination, freshness).await?,
            (_, Some(Named::Prefix(prefix))) => {
                let id = whole(reader, prefix, destination).await?;
                reader.get(id, destination, freshness).await?
            }
            (_, Some(Named::Ticket(ticket))) => {
                check_destination(&reader.directory(), &ticket.destination)?;
                reader.get(ticket.transaction, Some(&ticket.destination), freshness).await?
            }
            (None, None) => return Err(CliError::usage("give a transaction's id, or --key")),
        })
    }
}

/// The destination that is meant when none is named.
fn only_destination(reader: &Reader) -> Result<DestinationName, CliError> {
    let mut readable = reader.destinations().into_iter();
    match (readable.next(), readable.next()) {
        (Some(only), None) => Ok(only),
        (Some(first), Some(second)) => {
            let all: Vec<_> = [first, second].into_iter().chain(readable).map(|name| name.to_string()).collect();
            Err(CliError::usage(format!(
                "a key is looked up in one destination: say which with -d: {}",
                all.join(", ")
            )))
        }
        (None, _) => {
            Err(CliError::usage("the directory lets this reader read no destination: ask the operator for one"))
        }
    }
}

/// The one id that begins so.
async fn whole(
    reader: &Reader,
    prefix: &str,
    destination: Option<&DestinationName>,
) -> Result<TransactionId, CliError> {
    let answer = reader.status(prefix, destination).await?;
    let found: BTreeSet<_> = answer.found.iter().filter_map(|(_, status)| transaction_of(status)).collect();
    let mut ids = found.iter();
    match (ids.next(), ids.next(), answer.unavailable.first()) {
        (Some(only), None, _) if !answer.more => Ok(*only),
        (Some(_), ..) => {
            let named: Vec<_> = found.iter().take(5).map(ToString::to_string).collect();
            let more = if found.len() > named.len() || answer.more { " and others" } else { "" };
            let named = named.join(", ");
            Err(CliError::usage(format!(
                "{prefix} names more than one transaction: {named}{more}; give more of the id"
            )))
        }
        (None, _, Some(name)) => Err(CliError::with(
            Exit::Unavailable,
            format!("nobody can say yet for destination {name}: {}; try again", answer.said.join("; ")),
        )),
        (None, _, None) => Err(CliError::failed(format!("not found: no node knows an id that begins with {prefix}"))),
    }
}

/// Writes under another name in the same folder, so that a file of this name is always whole.
async fn to_file(feed: Feed, path: &std::path::Path) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file(path, &error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| std::path::Path::new("."));
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        return Err(CliError::failed(format!("{path}: there is no folder {folder}: make it first")));
    }
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    copy(feed, file.as_file_mut(), failed).await?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// What cannot be written is an error of `failed`'s kind.
async fn copy(
    mut feed: Feed,
    to: &mut impl Write,
    failed: impl Fn(std::io::Error) -> CliError,
) -> Result<(), CliError> {
    let mut bar = None;
    while let Some(event) = feed.next().await? {
        match event {
            Event::Begin(committed) => bar = Some(progress::bytes("receiving", Some(committed.payload_bytes))),
            Event::Data(data) => {
                to.write_all(&data).map_err(&failed)?;
                if let Some(bar) = &bar {
                    bar.inc(data.len() as u64);
                }
            }
            Event::End => break,
            Event::Progress(_) => {}
        }
    }
    to.flush().map_err(&failed)?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}
