//! `sealcast get`: the bytes of a committed transaction, as they were submitted.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::session::{Asked, block_on};
use super::{CliError, Context, Exit, progress};
use crate::client::reader::{Event, Feed, Freshness, Reader};
use crate::core::directory::Span;
use crate::core::id::{DestinationName, Position, TransactionId};

/// Prints the payload of a committed transaction, or writes it to a file; adds no byte
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealcast get 01939f6e-8d5c-7d2a-9a55-6b1f0d3c2b1a -o order.json
  sealcast get -d orders -k customer-42")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct Get {
    /// The transaction's id
    #[arg(group = "what", value_name = "ID")]
    transaction: Option<TransactionId>,

    /// The latest transaction of this ordering key instead
    #[arg(short, long, group = "what", value_name = "KEY", requires = "destination")]
    key: Option<String>,

    /// The destination; needed when several have the transaction
    #[arg(short, long, value_name = "DEST")]
    destination: Option<DestinationName>,

    /// The file to write; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    asked: Asked,

    /// Wait until the node holds everything up to this position (read your own writes)
    #[arg(long, value_name = "POSITION")]
    at_least: Option<Position>,

    /// Everything that was committed when the call came, by asking a majority
    #[arg(long)]
    linearizable: bool,

    /// Longest wait for these two, for example 5s
    #[arg(long, default_value_t = Span(Duration::from_secs(5)), value_name = "TIME")]
    timeout: Span,
}

impl Get {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let seams = context.seams.clone();
        block_on(async {
            let reader = self.asked.reader(&seams)?;
            let feed = self.feed(&reader).await?;
            match &self.output {
                Some(path) => to_file(feed, path).await?,
                None => {
                    copy(feed, &mut std::io::stdout().lock()).await?;
                }
            }
            Ok(Exit::Done)
        })
    }

    async fn feed(&self, reader: &Reader) -> Result<Feed, CliError> {
        let freshness =
            Freshness { at_least: self.at_least, linearizable: self.linearizable, timeout: Some(self.timeout.0) };
        Ok(match (&self.key, &self.destination, self.transaction) {
            (Some(key), Some(destination), _) => {
                reader.get_by_key(destination, key.as_bytes(), false, freshness).await?
            }
            (_, destination, Some(transaction)) => reader.get(transaction, destination.as_ref(), freshness).await?,
            _ => return Err(CliError::usage("give a transaction's id, or --destination and --key")),
        })
    }
}

/// Writes under another name in the same folder, so that a file of this name is always whole.
async fn to_file(feed: Feed, path: &std::path::Path) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file(path, &error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    copy(feed, file.as_file_mut()).await?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

async fn copy(mut feed: Feed, to: &mut impl Write) -> Result<(), CliError> {
    let mut bar = None;
    while let Some(event) = feed.next().await? {
        match event {
            Event::Begin(committed) => bar = Some(progress::bytes("receiving", Some(committed.payload_bytes))),
            Event::Data(data) => {
                to.write_all(&data)?;
                if let Some(bar) = &bar {
                    bar.inc(data.len() as u64);
                }
            }
            Event::End => break,
            Event::Progress(_) => {}
        }
    }
    to.flush()?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}
