//! `sealcast status`: what became of a transaction, and what it waits for.

use std::collections::BTreeSet;

use serde::Serialize;

use super::session::{Asked, Named, block_on, check_destination};
use super::{CliError, Context, Exit, Row};
use crate::client::reader::{Reader, Statuses};
use crate::core::id::{DestinationName, Fate, Position, TransactionId};
use crate::rpc::{convert, proto};

/// Says what became of a transaction: by its id, the id's first characters (8 or more), or its ticket
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples, in the folder of a reader's client.toml:
  sealcast status 01939f6e
  sealcast status orders/01939f6e-8d5c-7d2a-9a55-6b1f0d3c2b1a/1735689600000

Exit codes: 0 committed, 2 when the characters are those of several transactions, 3 undecided or not found, 4 rejected \
or expired.")]
pub(super) struct Status {
    /// Id, first characters of it, or ticket
    #[arg(value_name = "ID|TICKET")]
    what: Named,

    /// Only this destination
    #[arg(short, long, value_name = "DEST")]
    destination: Option<DestinationName>,

    #[command(flatten)]
    asked: Asked,
}

/// How many are shown when more than one transaction begins with what was given.
const SHOWN_OF_MANY: usize = 10;

#[derive(Debug, Serialize)]
struct Shown {
    transaction: String,
    destination: String,
    state: String,
    position: Option<Position>,
    sender: String,
    bytes: Option<u64>,
    held: bool,
    waiting: Vec<Waits>,
    node: String,
}

#[derive(Debug, Serialize)]
struct Waits {
    text: String,
    nodes: Vec<String>,
}

impl Row for Shown {
    const HEADS: &'static [&'static str] = &["transaction", "destination", "state", "position", "bytes", "waiting for"];

    fn cells(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let waiting: Vec<_> = self.waiting.iter().map(|waits| waits.text.clone()).collect();
        vec![
            self.transaction.clone(),
            self.destination.clone(),
            self.state.clone(),
            self.position.map_or_else(dash, |position| position.to_string()),
            self.bytes.map_or_else(dash, |bytes| bytes.to_string()),
            if waiting.is_empty() { dash() } else { waiting.join("; ") },
        ]
    }
}

impl Status {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        block_on(async {
            let reader = self.asked.reader(context)?;
            let answer = self.ask(&reader).await?;
            let several = several(&answer, &self.what.text());
            let mut rows = Vec::new();
            let mut exit = if answer.found.is_empty() { Exit::Unknown } else { Exit::Done };
            let most = if several.is_some() { SHOWN_OF_MANY } else { answer.found.len() };
            for (node, status) in answer.found.iter().take(most) {
                let fate = convert::fate_of(status).map_err(|error| CliError::failed(error.to_string()))?;
                match fate {
                    Some(Fate::Committed) => {}
                    Some(Fate::Rejected(_) | Fate::Expired) => exit = Exit::Rejected,
                    None if exit == Exit::Done => exit = Exit::Unknown,
                    None => {}
                }
                rows.push(shown(status, fate, node.to_string()));
            }
            if rows.is_empty() {
                let asked: Vec<_> = answer.asked.iter().map(ToString::to_string).collect();
                context.output.complain(&CliError::with(
                    Exit::Unknown,
                    format!("no such transaction is known (asked {}): it may not have arrived yet", asked.join(", ")),
                ));
            } else {
                context.output.rows(&rows)?;
            }
            for name in &answer.unavailable {
                let said = if answer.said.is_empty() { String::new() } else { format!(": {}", answer.said.join("; ")) };
                context.output.note(&format!("nobody can say yet for destination {name}{said}; try again"));
            }
            match several {
                // What became of the one that is meant cannot be told.
                Some(several) => Err(CliError::usage(several)),
                None => Ok(exit),
            }
        })
    }

    async fn ask(&self, reader: &Reader) -> Result<Statuses, CliError> {
        if let Some(destination) = &self.destination {
            check_destination(&reader.directory(), destination)?;
        }
        Ok(match &self.what {
            Named::Ticket(ticket) => {
                check_destination(&reader.directory(), &ticket.destination)?;
                reader.status_of(ticket).await?
            }
            Named::Whole(id) => reader.status(&id.to_string(), self.destination.as_ref()).await?,
            Named::Prefix(prefix) => reader.status(prefix, self.destination.as_ref()).await?,
        })
    }
}

/// What to say when what was given begins more than one id.
fn several(answer: &Statuses, given: &str) -> Option<String> {
    let found: BTreeSet<_> = answer.found.iter().filter_map(|(_, status)| transaction_of(status)).collect();
    let (first, last) = (found.first()?.to_string(), found.last()?.to_string());
    if found.len() < 2 && !answer.more {
        return None;
    }
    let count = if answer.more { format!("more than {}", found.len()) } else { found.len().to_string() };
    let shown = answer.found.len().min(SHOWN_OF_MANY);
    // In order, so that what the first and the last share, all do.
    let shared = first.chars().zip(last.chars()).take_while(|(one, other)| one == other).count();
    let longer = match shared > given.len() && !answer.more {
        true => format!(" (all begin with {})", first.get(..shared)?),
        false => String::new(),
    };
    Some(format!("{given} begins the ids of {count} transactions, {shown} are shown: give more of the id{longer}"))
}

/// The id of the transaction that a status is about; `None` when the node left it out.
pub(super) fn transaction_of(status: &proto::TransactionStatus) -> Option<TransactionId> {
    let ticket = status.ticket.as_ref()?;
    convert::transaction(&ticket.transaction, "Ticket.transaction").ok()
}

fn shown(status: &proto::TransactionStatus, fate: Option<Fate>, node: String) -> Shown {
    let ticket = status.ticket.as_ref();
    let transaction = transaction_of(status).map(|transaction| transaction.to_string());
    Shown {
        transaction: transaction.unwrap_or_default(),
        destination: ticket.map(|ticket| ticket.destination.clone()).unwrap_or_default(),
        state: fate.map_or_else(|| word(status.state()), |fate| fate.to_string()),
        position: status.position.map(Into::into),
        sender: status.sender.clone(),
        bytes: status.payload_bytes,
        held: status.held,
        waiting: status
            .waiting
            .iter()
            .map(|waiting| Waits { text: waiting.text.clone(), nodes: waiting.nodes.clone() })
            .collect(),
        node,
    }
}

fn word(state: proto::State) -> String {
    let name = state.as_str_name();
    name.strip_prefix("STATE_").unwrap_or(name).to_lowercase().replace('_', "-")
}
