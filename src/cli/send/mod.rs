//! `sealcast send`: submits files, standard input or its lines (`submit`), and waits for the stage that was asked for
//! (`show`).

mod show;
mod submit;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::session::{Configured, block_on, check_destination, header};
use super::{CliError, Context, Exit};
use crate::cli::quote::quoted;
use crate::client::{Client, Stage, Transaction};
use crate::config::ClientConfig;
use crate::core::directory::Span;
use crate::core::id::{DestinationName, OnPredecessor, Position, Release, Ticket};
use crate::transport::{Topic, Trouble};
use submit::Patience;

/// Longest time for the outbox to write down what became known.
const CLOSING: Duration = Duration::from_secs(10);

/// Seals payloads and sends them: a transaction for each file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples, in the folder of a sender's client.toml:
  sealcast send orders order.json -k customer-42
  sealcast send orders *.json --wait complete --format json
  tail -n 100 events.log | sealcast send orders - --lines
  sealcast send --resume --wait complete

Exit codes: 3 when what --wait asked for is not known in time (state is then unknown while there is no fate, and committed \
when only nodes are lacking; the outbox keeps the transaction, and the ticket is printed: ask again with \
`sealcast status TICKET` and a reader's client.toml), 4 when consensus rejected it or it expired.")]
pub(super) struct Send {
    /// Where to: one destination, or several with commas
    #[arg(value_name = "DEST[,DEST]", value_parser = destinations, required_unless_present = "resume")]
    destinations: Option<Destinations>,

    /// Files; - or none: standard input as one transaction
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Send nothing new: go on with what the outbox still holds, and wait for it. With --wait submitted it only lists it
    #[arg(long, conflicts_with_all = ["destinations", "files", "key", "headers", "content_type", "idempotency_key", "after",
        "on_predecessor", "release", "deadline", "compress", "pad", "lines"])]
    resume: bool,

    #[command(flatten)]
    configured: Configured,

    /// Ordering key: transactions with equal keys keep their order
    #[arg(short, long, value_name = "KEY")]
    key: Option<String>,

    /// A header, sealed like the payload; repeat for more
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,

    /// Media type of the payloads
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// Equal keys have one effect: a later transaction is rejected(duplicate)
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Commit only if the ordering key's last position is this one (0.0: only if the key is new); at several destinations
    /// repeat it for each
    #[arg(long, value_name = "[DEST=]POSITION", requires = "key", value_parser = expected)]
    expected_version: Vec<(Option<DestinationName>, Position)>,

    /// Follow this transaction rather than the last one of the ordering key; once for each destination
    #[arg(long, value_name = "TICKET")]
    after: Vec<Ticket>,

    /// What becomes of it when what it follows is rejected or expires: reject or go-on
    #[arg(long, value_name = "RULE", default_value = "reject", value_parser = on_predecessor)]
    on_predecessor: OnPredecessor,

    /// Follow only when what it follows is: committed, or complete (held by all nodes)
    #[arg(long, value_name = "WHEN", default_value = "committed", value_parser = release)]
    release: Release,

    /// Expire when there is no fate after this long, for example 10m; default a day, or the destination's longest life
    #[arg(long, value_name = "TIME")]
    deadline: Option<Span>,

    /// Compress payloads (zstd) before they are sealed
    #[arg(short = 'z', long)]
    compress: bool,

    /// Pad payloads (at most 12 % more), so that sizes say little; a large file is read twice for it. Not for more than
    /// 512 KiB of standard input: a header says the length and goes first, and that cannot be read twice
    #[arg(long)]
    pad: bool,

    /// One transaction for each line of the input, without its line feed
    #[arg(long)]
    lines: bool,

    /// How far to wait
    #[arg(long, value_enum, default_value_t = Wait::Committed)]
    wait: Wait,

    /// Longest wait for that, for all together, once everything is submitted, less what connecting took; before that, for
    /// room when too much is undecided or the outbox is full. For example 30s
    #[arg(long, default_value_t = Span(Duration::from_secs(60)), value_name = "TIME")]
    timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    /// Durable in the outbox
    Submitted,
    /// The brokers have it, whichever one is lost
    Accepted,
    /// A majority of the nodes signed it
    Committed,
    /// All nodes signed it
    Complete,
}

impl From<Wait> for Stage {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Submitted => Self::Submitted,
            Wait::Accepted => Self::Accepted,
            Wait::Committed => Self::Committed,
            Wait::Complete => Self::Complete,
        }
    }
}

/// One argument that names several.
#[derive(Debug, Clone)]
struct Destinations(Vec<DestinationName>);

fn destinations(text: &str) -> Result<Destinations, String> {
    let names = text.split(',').map(|name| name.parse().map_err(|error| format!("{error}")));
    names.collect::<Result<_, _>>().map(Destinations)
}

fn expected(text: &str) -> Result<(Option<DestinationName>, Position), String> {
    let (destination, position) = match text.split_once('=') {
        Some((name, position)) => (Some(name.parse::<DestinationName>().map_err(|error| error.to_string())?), position),
        None => (None, text),
    };
    Ok((destination, position.parse::<Position>().map_err(|error| error.to_string())?))
}

fn on_predecessor(text: &str) -> Result<OnPredecessor, String> {
    OnPredecessor::from_word(text).ok_or_else(|| "expected reject or go-on".to_owned())
}

fn release(text: &str) -> Result<Release, String> {
    Release::from_word(text).ok_or_else(|| "expected committed or complete".to_owned())
}

/// Refuses a destination whose topic was never made: nobody could deliver anything there, and whoever sends can mend it now.
fn check_topic(client: &Client, destination: &DestinationName, config: &ClientConfig) -> Result<(), CliError> {
    match client.trouble(destination) {
        Some(Trouble { missing: true, .. }) => {
            let topic = Topic::segments(&client.directory().name, destination);
            let shown = quoted(config.path());
            Err(CliError::usage(format!(
                "there is no topic {topic} yet, and nothing was submitted: make it with `sealcast topic init --config \
                 {shown}`"
            )))
        }
        _ => Ok(()),
    }
}

/// Lets the outbox let go of what has its fate; else the next start would send it again.
async fn close(client: Client) {
    if tokio::time::timeout(CLOSING, client.close()).await.is_err() {
        tracing::warn!("the outbox was not closed in time; what it still holds is settled at the next start");
    }
}

impl Send {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let config = self.configured.load(context)?;
        if config.sender.is_none() {
            let shown = config.path().display();
            return Err(CliError::usage(format!(
                "{shown}: it names no sender: use a sender's client.toml, for example senders/NAME/client.toml"
            )));
        }
        self.files.iter().try_for_each(|file| submit::there(file))?;
        let seams = context.seams.clone();
        block_on(async {
            let connecting = Instant::now();
            let client = Client::with_config(&config, seams).await?;
            // Without brokers it goes on after seconds: they are part of the wait.
            let left = self.timeout.0.saturating_sub(connecting.elapsed());
            let directory = client.directory();
            self.destinations().iter().try_for_each(|name| check_destination(&directory, name))?;
            let topics = self.destinations().iter().try_for_each(|name| check_topic(&client, name, &config));
            if let Err(missing) = topics {
                close(client).await;
                return Err(missing);
            }
            let mut older = client.kept();
            if !self.resume {
                older.retain(|handle| show::lacks(handle.outcome(), self.wait.into()));
            }
            let (give, mut take) = tokio::sync::mpsc::channel(1024);
            let (until, deadline) = tokio::sync::watch::channel(None);
            let patience = Patience::new(self.timeout.0, context.output);
            let outcome = {
                let submitting = async {
                    match self.resume {
                        true => submit::pass_kept(context, &give, older.clone()).await,
                        false => self.submit_all(context, &client, &give, &patience).await,
                    }
                };
                let mut printing = Box::pin(async {
                    let printed = self.print_all(context, &client, &mut take, deadline.clone()).await?;
                    if !self.resume {
                        self.finish_older(context, &client, &older, deadline).await?;
                    }
                    Ok(printed)
                });
                tokio::select! {
                    submitted = submitting => {
                        until.send_replace(Some(patience.moved.get() + left));
                        drop(give);
                        // What was submitted before an error is waited for and printed all the same.
                        let printed = printing.await;
                        submitted.and(printed)
                    }
                    // It ends first only when stdout is closed.
                    printed = &mut printing => printed,
                    Ok(()) = tokio::signal::ctrl_c() => {
                        let (undecided, _) = client.undecided();
                        context.output.note(&format!(
                            "ended by Ctrl-C: {undecided} transactions without a fate stay in the outbox; `sealcast send \
                             --resume` here goes on with them"
                        ));
                        Ok(Exit::Unknown)
                    }
                }
            };
            close(client).await;
            outcome
        })
    }

    /// Where to; nowhere when nothing new is sent.
    fn destinations(&self) -> &[DestinationName] {
        self.destinations.as_ref().map(|destinations| destinations.0.as_slice()).unwrap_or_default()
    }

    fn transaction(&self, payload: Bytes) -> Transaction {
        let mut transaction = Transaction::new(payload);
        if let Some(key) = &self.key {
            transaction = transaction.key(key.clone().into_bytes());
        }
        for (name, value) in &self.headers {
            transaction = transaction.header(name.clone(), value.clone().into_bytes());
        }
        if let Some(content_type) = &self.content_type {
            transaction = transaction.content_type(content_type.clone());
        }
        if let Some(key) = &self.idempotency_key {
            transaction = transaction.idempotency_key(key.clone().into_bytes());
        }
        for (destination, position) in &self.expected_version {
            transaction = match destination {
                Some(name) => transaction.expected_version_at(name.clone(), *position),
                None => transaction.expected_version(*position),
            };
        }
        for ticket in &self.after {
            transaction = transaction.after(ticket.clone());
        }
        transaction = transaction.on_predecessor(self.on_predecessor);
        if self.release == Release::Complete {
            transaction = transaction.release_on_complete();
        }
        if let Some(deadline) = self.deadline {
            transaction = transaction.deadline(deadline.0);
        }
        if self.compress {
            transaction = transaction.compress();
        }
        if self.pad { transaction.pad() } else { transaction }
    }
}
