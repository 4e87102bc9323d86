//! What `send` shows: how far each transaction has come, and in the end its row. Must not submit.

use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::{CliError, Context, Exit, Row, progress};
use super::submit::Submitted;
use super::{Send, Wait};
use crate::client::{Client, Handle, Receipt, Stage, Waited};
use crate::core::id::{DestinationName, Position, Ticket};
use crate::store::outbox::Outcome;

/// What is printed of a transaction at one destination.
#[derive(Debug, Serialize)]
struct Sent {
    transaction: String,
    parcel: Option<String>,
    destination: DestinationName,
    state: String,
    position: Option<Position>,
    signers: Vec<String>,
    bytes: u64,
    accepted_ms: Option<f64>,
    committed_ms: Option<f64>,
    complete_ms: Option<f64>,
    ticket: Ticket,
    source: String,
}

impl Row for Sent {
    const HEADS: &'static [&'static str] =
        &["transaction", "destination", "state", "position", "signers", "bytes", "accepted", "committed", "complete"];

    fn cells(&self) -> Vec<String> {
        let time = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.1} ms"));
        vec![
            self.transaction.clone(),
            self.destination.to_string(),
            self.state.clone(),
            self.position.map_or_else(|| "-".to_owned(), |position| position.to_string()),
            self.signers.join(","),
            self.bytes.to_string(),
            time(self.accepted_ms),
            time(self.committed_ms),
            time(self.complete_ms),
        ]
    }
}

impl Send {
    /// Waits for each transaction in the order of submission, and prints it.
    pub(super) async fn print_all(
        &self,
        context: &Context,
        client: &Client,
        take: &mut mpsc::Receiver<Submitted>,
        mut deadline: watch::Receiver<Option<Instant>>,
    ) -> Result<Exit, CliError> {
        let mut worst = Exit::Done;
        let mut rows = Vec::new();
        let line = progress::state();
        while let Some(submitted) = take.recv().await {
            // Whoever ends this command before there is an answer needs the ticket to ask for one.
            line.suspend(|| context.output.submitted(&submitted.source, submitted.handle.ticket()));
            let telling = tell(&line, client, &submitted, take.len(), deadline.clone());
            let over = async {
                // While transactions are still submitted there is no end yet; what ends without setting one has no more.
                let until = deadline.wait_for(Option::is_some).await.ok().and_then(|until| *until);
                tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
            };
            let waited = tokio::select! {
                biased;
                waited = submitted.handle.wait(self.wait.into(), Duration::MAX) => waited?,
                () = over => Waited::Unknown,
                () = telling => Waited::Unknown,
            };
            line.set_message("");
            let (state, exit) = match waited {
                Waited::Reached => (reached(self.wait), Exit::Done),
                Waited::Rejected(reason) => (format!("rejected({})", reason.word()), Exit::Rejected),
                Waited::Expired => ("expired".to_owned(), Exit::Rejected),
                Waited::Unknown => (so_far(submitted.handle.outcome()).to_owned(), Exit::Unknown),
            };
            if worst == Exit::Done || (worst == Exit::Unknown && exit == Exit::Rejected) {
                worst = if exit == Exit::Done { worst } else { exit };
            }
            if exit == Exit::Unknown {
                let said = unknown(&submitted.handle, client);
                line.suspend(|| context.output.note(&said));
            }
            let row = sent(submitted, state);
            if context.output.is_json() {
                line.suspend(|| context.output.rows(&[row]))?;
            } else {
                rows.push(row);
            }
        }
        line.finish_and_clear();
        if !context.output.is_json() && !rows.is_empty() {
            context.output.rows(&rows)?;
        }
        Ok(worst)
    }
}

impl Send {
    /// Waits for what former runs left in the outbox, once this one's own is printed, and tells what became of it. It is
    /// no part of the data, nor of the exit code.
    pub(super) async fn finish_older(
        &self,
        context: &Context,
        client: &Client,
        older: &[Handle],
        deadline: watch::Receiver<Option<Instant>>,
    ) -> Result<(), CliError> {
        let stage = self.wait.into();
        if older.is_empty() {
            return Ok(());
        }
        let until = deadline.borrow().unwrap_or_else(Instant::now);
        let open = older.iter().filter(|handle| lacks(handle.outcome(), stage)).count();
        if open > 0 && stage > Stage::Submitted && until > Instant::now() {
            let count = transactions(open);
            context.output.note(&format!("the outbox still holds {count} of former runs: waiting for that too"));
        }
        let line = progress::state();
        let (mut remaining, mut ended, mut last) = (0, 0, String::new());
        for (at, handle) in older.iter().enumerate() {
            line.set_message(format!("{} ({} more)", known(handle, client), older.len() - at - 1));
            let waited = tokio::select! {
                biased;
                waited = handle.wait(stage, Duration::MAX) => waited?,
                () = tokio::time::sleep_until(until) => Waited::Unknown,
            };
            match waited {
                Waited::Reached if stage > Stage::Submitted => {}
                Waited::Rejected(_) | Waited::Expired => {
                    ended += 1;
                    last = format!("{}: {}", handle.ticket(), known(handle, client));
                    line.suspend(|| context.output.note(&last));
                }
                Waited::Reached | Waited::Unknown => {
                    remaining += 1;
                    last = known(handle, client);
                }
            }
        }
        line.finish_and_clear();
        if remaining > 0 {
            let (stay, them, tickets) =
                if remaining == 1 { ("stays", "it", "its ticket") } else { ("stay", "them", "their tickets") };
            context.output.note(&format!(
                "{} of former runs {stay} in the outbox, unfinished ({last}): `sealcast send --resume` here goes on with \
                 {them}, and with `--wait submitted` lists {tickets}",
                transactions(remaining)
            ));
        } else {
            let count = transactions(older.len() - ended);
            context.output.note(&format!("of what former runs left in the outbox: {count} {}", reached(self.wait)));
        }
        Ok(())
    }
}

/// Whether what is known of it falls short of this stage. Nobody waits for what is only to be submitted, but it is told
/// while the brokers do not have it.
pub(super) fn lacks(outcome: Outcome, stage: Stage) -> bool {
    match stage {
        Stage::Submitted | Stage::Accepted => outcome == Outcome::Submitted,
        Stage::Committed => !outcome.decided(),
        Stage::Complete => !outcome.done(),
    }
}

fn transactions(count: usize) -> String {
    if count == 1 { "1 transaction".to_owned() } else { format!("{count} transactions") }
}

/// Tells on a terminal how far it has come and whom it waits for, once everything is submitted; until then other bars are
/// shown. Never ends.
async fn tell(
    line: &ProgressBar,
    client: &Client,
    submitted: &Submitted,
    more: usize,
    mut deadline: watch::Receiver<Option<Instant>>,
) {
    // An end without a deadline is the end of everything.
    if deadline.wait_for(Option::is_some).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        let known = known(&submitted.handle, client);
        line.set_message(match more {
            0 => format!("{}: {known}", submitted.source),
            more => format!("{}: {known} ({more} more)", submitted.source),
        });
        if submitted.handle.changed().await.is_none() {
            return std::future::pending().await;
        }
    }
}

/// How far a transaction has come, and whom it waits for.
fn known(handle: &Handle, client: &Client) -> String {
    let directory = client.directory();
    let entry = directory.destinations.get(&handle.ticket().destination);
    let voters: Vec<_> = entry.into_iter().flat_map(|entry| &entry.nodes).collect();
    let signed = handle.receipt().map(|receipt| receipt.signers).unwrap_or_default();
    let lacking = voters.iter().filter(|voter| !signed.contains(voter)).map(ToString::to_string).collect::<Vec<_>>();
    let trouble = client.trouble(&handle.ticket().destination);
    words(Known {
        outcome: handle.outcome(),
        refused: handle.refused().as_deref(),
        trouble: trouble.as_ref().map(|trouble| trouble.cause.as_str()),
        withheld: &handle.withheld(),
        only_one: handle.only_one_domain(),
        lacking: &lacking,
    })
}

/// What is known of a transaction, to be said in words.
#[derive(Default, Clone, Copy)]
struct Known<'a> {
    outcome: Outcome,
    /// Why the brokers refuse it.
    refused: Option<&'a str>,
    /// Why its topic cannot be found at the brokers.
    trouble: Option<&'a str>,
    /// The domains for want of which it is not accepted.
    withheld: &'a [Arc<str>],
    /// Whether that is the topic's only domain.
    only_one: bool,
    /// The voters whose signature is lacking.
    lacking: &'a [String],
}

/// The same in words, without a full stop.
fn words(known: Known<'_>) -> String {
    let Known { outcome, refused, trouble, withheld, only_one, lacking } = known;
    match outcome {
        Outcome::Submitted if refused.is_some() => format!("the brokers refuse it: {}", refused.unwrap_or_default()),
        Outcome::Submitted if only_one => format!(
            "it cannot be accepted: the topic has partitions in one domain only ({}): add some in another with `sealcast \
             topic init --grow`",
            withheld.join(", ")
        ),
        Outcome::Submitted if !withheld.is_empty() => {
            format!("the brokers have only part of it: nothing answers in {}", withheld.join(", "))
        }
        Outcome::Submitted if trouble.is_some() => {
            format!("the brokers do not have it yet: {}", trouble.unwrap_or_default().trim_end_matches('.'))
        }
        Outcome::Submitted => "the brokers do not have it yet".to_owned(),
        Outcome::Accepted => {
            format!("the brokers have it, and no majority of the nodes ({}) has signed it yet", lacking.join(", "))
        }
        Outcome::Committed(_) => format!("it is committed, and not signed by {} yet", lacking.join(", ")),
        Outcome::Complete(_) => "it is complete".to_owned(),
        Outcome::Rejected(reason) => format!("rejected({})", reason.word()),
        Outcome::Expired => "it has expired".to_owned(),
    }
}

/// What is known of a transaction whose stage was not reached in time.
fn unknown(handle: &Handle, client: &Client) -> String {
    let (known, ticket) = (known(handle, client), handle.ticket());
    // What is to be done about it can be a question.
    let stop = if known.ends_with(['?', '!']) { "" } else { "." };
    format!(
        "no answer in time: {known}{stop} The outbox keeps it, and `sealcast send --resume` here goes on with it; ask \
         again with a reader's configuration: sealcast status {ticket} --config readers/NAME/client.toml"
    )
}

/// The state of a transaction whose stage was not reached in time: a fate that is known is no unknown one.
fn so_far(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete(_) => "complete",
        Outcome::Committed(_) => "committed",
        _ => "unknown",
    }
}

fn reached(wait: Wait) -> String {
    let stage: Stage = wait.into();
    format!("{stage:?}").to_lowercase()
}

fn sent(submitted: Submitted, state: String) -> Sent {
    let Submitted { handle, source } = submitted;
    let bytes = handle.payload_bytes().unwrap_or_default();
    let receipt: Option<Receipt> = handle.receipt();
    let times = handle.times();
    let milliseconds = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e6).round() / 1e3);
    Sent {
        transaction: handle.ticket().transaction.to_string(),
        parcel: handle.parcel().map(|parcel| parcel.to_string()),
        destination: handle.ticket().destination.clone(),
        state,
        position: receipt.as_ref().and_then(|receipt| receipt.position),
        signers: receipt.map(|receipt| receipt.signers.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        bytes,
        accepted_ms: milliseconds(times.accepted),
        committed_ms: milliseconds(times.committed),
        complete_ms: milliseconds(times.complete),
        ticket: handle.ticket().clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fate_that_is_known_is_never_called_unknown() {
        assert_eq!(so_far(Outcome::Committed(Position::default())), "committed");
        assert_eq!(so_far(Outcome::Complete(Position::default())), "complete");
        assert_eq!([so_far(Outcome::Submitted), so_far(Outcome::Accepted)], ["unknown"; 2]);
    }

    #[test]
    fn a_state_says_whom_it_waits_for() {
        let lacking = ["b".to_owned(), "c".to_owned()];
        let said =
            |outcome, withheld: &[Arc<str>]| words(Known { outcome, withheld, lacking: &lacking, ..Known::default() });
        let undelivered = Known { lacking: &lacking, ..Known::default() };
        assert!(words(Known { refused: Some("too large"), ..undelivered }).ends_with("refuse it: too large"));
        assert!(words(Known { trouble: Some("no topic."), ..undelivered }).ends_with("do not have it yet: no topic"));
        assert!(said(Outcome::Submitted, &["rack-2".into()]).ends_with("nothing answers in rack-2"));
        let only_one = words(Known { withheld: &["rack-2".into()], only_one: true, ..undelivered });
        assert!(only_one.contains("in one domain only (rack-2)") && only_one.contains("--grow"), "{only_one}");
        assert!(said(Outcome::Accepted, &[]).contains("no majority of the nodes (b, c)"));
        assert_eq!(said(Outcome::Committed(Position::default()), &[]), "it is committed, and not signed by b, c yet");
    }
}
