//! `sealcast watch`: the committed feed of a destination.

use std::io::Write;

use serde::Serialize;

use super::session::{Asked, Fresh, block_on, check_destination, header};
use super::{CliError, Context, Exit};
use crate::client::reader::{Committed, Cursor, Event, From, Reader, Subscription};
use crate::core::directory::Span;
use crate::core::id::{DestinationName, NodeName, Position, Ticket, Time};
use crate::seams::Clock;

/// Prints what a destination commits, in order: payloads as they are, or one JSON object each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples, in the folder of a reader's client.toml:
  sealcast watch orders --from start -e --lines
  sealcast watch orders --from -10 -e --format json
  sealcast watch orders --from 17.0 -c 5
  sealcast watch orders -k customer-42 --linearizable -e --lines
  sealcast watch orders -H kind=refund -e --format json

With --format json each line has the transaction and the cursor that goes on after it, for --from. Without it only payloads \
are printed, nothing between them; --lines puts a line feed behind each. When its node ends, watch goes on at \
another, where it was.

Positions rise and leave numbers out: the log also carries what is no transaction of yours, such as time, directories and \
rejections.")]
pub(super) struct Watch {
    /// The destination
    #[arg(value_name = "DEST")]
    destination: DestinationName,

    /// Where to start: start, end, -N (the last N, counted before --key and --header choose), @TIME (that long ago, for example @2h), or a cursor: a position, which
    /// what is printed comes after, or what a feed of the library gave
    #[arg(long, default_value = "start", value_name = "start|end|-N|@TIME|CURSOR", allow_hyphen_values = true,
          value_parser = start)]
    from: Start,

    /// Stop at the end, rather than wait for more
    #[arg(short = 'e', long)]
    exit: bool,

    /// Stop after so many
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,

    /// Only transactions with this ordering key; repeat for one of several
    #[arg(short, long = "key", value_name = "KEY")]
    keys: Vec<String>,

    /// Only transactions with this header; repeat for all of several
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,

    /// A line feed behind each payload
    #[arg(long)]
    lines: bool,

    #[command(flatten)]
    asked: Asked,

    #[command(flatten)]
    fresh: Fresh,
}

#[derive(Debug, Clone, Copy)]
enum Start {
    Given(From),
    Ago(std::time::Duration),
}

fn start(text: &str) -> Result<Start, String> {
    let wrong = || "expected start, end, -N, @TIME or a cursor, for example -10, @2h or 17.0".to_owned();
    Ok(match text {
        "start" => Start::Given(From::Start),
        "end" => Start::Given(From::End),
        _ => match (text.strip_prefix('-'), text.strip_prefix('@')) {
            (Some(count), _) => Start::Given(From::Last(count.parse().map_err(|_| wrong())?)),
            (_, Some(ago)) => Start::Ago(ago.parse::<Span>().map_err(|error| error.to_string())?.0),
            _ if text.contains('@') => Start::Given(From::Cursor(text.parse().map_err(|_| wrong())?)),
            _ => Start::Given(From::After(text.parse().map_err(|_| wrong())?)),
        },
    })
}

/// A committed transaction, as JSON has it.
#[derive(Serialize)]
pub(super) struct Shown {
    transaction: String,
    destination: DestinationName,
    position: Position,
    sender: String,
    parcel: String,
    committed_ms: u64,
    bytes: u64,
    key: Option<String>,
    headers: Vec<(String, String)>,
    content_type: Option<String>,
    idempotency_key: Option<String>,
    trace: Option<String>,
    ticket: Ticket,
    /// Goes on after it, at any node.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<Cursor>,
}

impl std::convert::From<&Committed> for Shown {
    fn from(committed: &Committed) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            transaction: committed.ticket.transaction.to_string(),
            destination: committed.ticket.destination.clone(),
            position: committed.position,
            sender: committed.sender.to_string(),
            parcel: committed.parcel.to_string(),
            committed_ms: committed.committed.0,
            bytes: committed.payload_bytes,
            key: committed.key.as_deref().map(text),
            headers: committed.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            content_type: committed.content_type.clone(),
            idempotency_key: committed.idempotency_key.as_deref().map(text),
            trace: committed.trace.clone(),
            ticket: committed.ticket.clone(),
            cursor: None,
        }
    }
}

impl Watch {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let seams = context.seams.clone();
        let from = match self.from {
            Start::Given(from) => from,
            Start::Ago(ago) => From::Since(before(&*seams.clock, ago)),
        };
        block_on(async {
            let reader = self.asked.reader(context)?;
            check_destination(&reader.directory(), &self.destination)?;
            let mut feed = reader.subscribe(&self.destination, self.subscription(from)).await?;
            let mut left = self.count.unwrap_or(u64::MAX);
            let mut shown = None;
            while left > 0 {
                let Some(event) = feed.next().await? else { break };
                match event {
                    Event::Begin(committed) if context.output.is_json() => shown = Some(Shown::from(&*committed)),
                    Event::Data(data) if !context.output.is_json() => std::io::stdout().lock().write_all(&data)?,
                    Event::End => {
                        // The cursor is behind it only now.
                        if let Some(shown) = shown.take() {
                            context.output.object(&Shown { cursor: feed.cursor(), ..shown })?;
                        }
                        if self.lines && !context.output.is_json() {
                            std::io::stdout().lock().write_all(b"\n")?;
                        }
                        std::io::stdout().lock().flush()?;
                        left -= 1;
                    }
                    _ => {}
                }
            }
            if left == self.count.unwrap_or(u64::MAX)
                && let Some(text) = past_the_end(from, &self.destination, feed.node(), &reader).await
            {
                context.output.note(&text);
            }
            Ok(Exit::Done)
        })
    }
}

impl Watch {
    fn subscription(&self, from: From) -> Subscription {
        let mut all = Subscription::new(from).fresh(self.fresh.freshness());
        if self.exit {
            all = all.until_end();
        }
        all = self.keys.iter().fold(all, |all, key| all.key(key.clone()));
        self.headers.iter().fold(all, |all, (name, value)| all.header(name.clone(), value.clone()))
    }
}

/// What to say of a start behind everything that there is; nothing when it is not, or when nobody can say.
async fn past_the_end(from: From, destination: &DestinationName, node: &NodeName, reader: &Reader) -> Option<String> {
    let from = match from {
        From::After(position) => position,
        From::Cursor(cursor) => cursor.position(),
        _ => return None,
    };
    let status = reader.node_status(node).await.ok()?;
    let group = status.groups.iter().find(|group| group.destination == destination.as_str())?;
    let end: Position = group.position?.into();
    (from > end).then(|| format!("--from {from} is past the end: {destination} ends at {end} now, as node {node} says"))
}

fn before(clock: &dyn Clock, ago: std::time::Duration) -> Time {
    Time(clock.now().0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
}
