//! `sealcast send`: submits files, standard input or its lines, and waits for the stage that was asked for.

use std::cell::Cell;
use std::future::Future;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::Instant;

use super::session::{Configured, block_on};
use super::{CliError, Context, Exit, Row, progress};
use crate::client::{Client, ClientError, Handle, Receipt, Stage, Transaction, Waited};
use crate::core::directory::Span;
use crate::core::id::{DestinationName, Position, Ticket};
use crate::store::outbox::Outcome;

/// Payloads up to this length are read whole, so that several of them can share a parcel.
const WHOLE_BYTES: u64 = 512 * 1024;

/// How often it is looked whether lines still find room.
const LOOK: Duration = Duration::from_millis(200);

/// Longest time for the outbox to write down what became known.
const CLOSING: Duration = Duration::from_secs(10);

/// Seals payloads and sends them: a transaction for each file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples, in the folder of a sender's client.toml:
  sealcast send orders order.json -k customer-42
  sealcast send orders *.json --wait complete --format json
  tail -n 100 events.log | sealcast send orders - --lines

Exit codes: 3 when the fate is unknown (the outbox keeps the transaction, and the ticket is printed: ask again with \
`sealcast status TICKET` and a reader's client.toml), 4 when consensus rejected it or it expired.")]
pub(super) struct Send {
    /// Where to: one destination, or several with commas
    #[arg(value_name = "DEST[,DEST]", value_parser = destinations)]
    destinations: Destinations,

    /// Files; - or none: standard input as one transaction
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

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

    /// Commit only if the ordering key's last position is this one (0.0: only if the key is new)
    #[arg(long, value_name = "POSITION", requires = "key")]
    expected_version: Option<Position>,

    /// Expire when there is no fate after this long, for example 10m; default a day, or the destination's longest life
    #[arg(long, value_name = "TIME")]
    deadline: Option<Span>,

    /// Compress payloads (zstd) before they are sealed
    #[arg(short = 'z', long)]
    compress: bool,

    /// Pad payloads (at most 12 % more), so that sizes say little: of files up to 512 KiB and of --lines; longer files and
    /// standard input are sealed as they are read, before their length is known
    #[arg(long)]
    pad: bool,

    /// One transaction for each line of the input, without its line feed
    #[arg(long)]
    lines: bool,

    /// How far to wait
    #[arg(long, value_enum, default_value_t = Wait::Committed)]
    wait: Wait,

    /// Longest wait for that, for all together, once everything is submitted; before that, for room when too much is
    /// undecided. For example 30s
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

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, for example content-language=en".to_owned()),
    }
}

/// Refuses a file that is not there before anything is submitted.
fn there(file: &Path) -> Result<(), CliError> {
    if file == Path::new("-") {
        return Ok(());
    }
    let shown = file.display();
    match std::fs::metadata(file) {
        Ok(meta) if meta.is_dir() => {
            Err(CliError::usage(format!("{shown} is a folder: name its files, for example {shown}/*")))
        }
        Ok(_) => Ok(()),
        Err(error) => {
            Err(CliError::usage(format!("{shown}: {error}: name a file that is there, or - for standard input")))
        }
    }
}

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

/// When a submission last went on: what is waited for from then on has an end.
struct Patience {
    moved: Cell<Instant>,
    limit: Duration,
}

impl Patience {
    /// It goes on.
    fn renew(&self) {
        self.moved.set(Instant::now());
    }

    fn is_over(&self) -> bool {
        self.moved.get().elapsed() >= self.limit
    }

    /// Awaits what frees room. Errors: unavailable, when that takes too long.
    async fn room<T>(&self, client: &Client, freed: impl Future<Output = T>) -> Result<T, CliError> {
        let outcome = tokio::time::timeout(self.limit, freed).await.map_err(|_| self.no_room(client))?;
        self.renew();
        Ok(outcome)
    }

    fn no_room(&self, client: &Client) -> CliError {
        let (undecided, _) = client.undecided();
        CliError::with(
            Exit::Unavailable,
            format!(
                "no room for more within {}: the outbox keeps {undecided} transactions without a fate; what follows was not \
                 submitted",
                Span(self.limit)
            ),
        )
    }
}

/// Where submissions go to be waited for and printed.
type Give = tokio::sync::mpsc::Sender<Submitted>;

struct Submitted {
    handle: Handle,
    bytes: u64,
    source: String,
}

impl Send {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let config = self.configured.load()?;
        if config.sender.is_none() {
            let shown = config.path().display();
            return Err(CliError::usage(format!(
                "{shown}: it names no sender: use a sender's client.toml, for example senders/NAME/client.toml"
            )));
        }
        self.files.iter().try_for_each(|file| there(file))?;
        let seams = context.seams.clone();
        block_on(async {
            let client = Client::with_config(&config, seams).await?;
            let (give, mut take) = tokio::sync::mpsc::channel(1024);
            let (until, deadline) = tokio::sync::watch::channel(None);
            let patience = Patience { moved: Cell::new(Instant::now()), limit: self.timeout.0 };
            let outcome = {
                let submitting = self.submit_all(context, &client, &give, &patience);
                let mut printing = Box::pin(self.print_all(context, &mut take, deadline));
                tokio::select! {
                    submitted = submitting => {
                        until.send_replace(Some(patience.moved.get() + patience.limit));
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
                            "ended by Ctrl-C: {undecided} transactions without a fate stay in the outbox; the next `sealcast \
                             send` here goes on with them"
                        ));
                        Ok(Exit::Unknown)
                    }
                }
            };
            // The outbox lets go of what has its fate; else the next start would send it again.
            if tokio::time::timeout(CLOSING, client.close()).await.is_err() {
                tracing::warn!("the outbox was not closed in time; what it still holds is settled at the next start");
            }
            outcome
        })
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
        if let Some(position) = self.expected_version {
            transaction = transaction.expected_version(position);
        }
        if let Some(deadline) = self.deadline {
            transaction = transaction.deadline(deadline.0);
        }
        if self.compress {
            transaction = transaction.compress();
        }
        if self.pad { transaction.pad() } else { transaction }
    }

    async fn submit_all(
        &self,
        context: &Context,
        client: &Client,
        give: &Give,
        patience: &Patience,
    ) -> Result<(), CliError> {
        let input = PathBuf::from("-");
        let files = if self.files.is_empty() { std::slice::from_ref(&input) } else { &self.files };
        for file in files {
            let standard = file == Path::new("-");
            if standard && std::io::stdin().is_terminal() {
                context.output.note("reading standard input until its end (Ctrl-D)");
            }
            if self.lines {
                self.submit_lines(client, file, give, patience).await?;
            } else {
                let submitted = if standard {
                    self.submit_stream(client, tokio::io::stdin(), None, "-", patience).await?
                } else {
                    self.submit_file(client, file, patience).await?
                };
                patience.renew();
                patience.room(client, pass(give, submitted)).await?;
            }
        }
        Ok(())
    }

    async fn submit_file(&self, client: &Client, file: &Path, patience: &Patience) -> Result<Vec<Submitted>, CliError> {
        let failed = |error| CliError::file(file, &error);
        let source = file.display().to_string();
        let mut opened = tokio::fs::File::open(file).await.map_err(failed)?;
        let meta = opened.metadata().await.map_err(failed)?;
        // What is no regular file (a pipe, a device) tells no length.
        let length = meta.is_file().then_some(meta.len());
        match length {
            Some(length) if length <= WHOLE_BYTES => {
                let mut payload = Vec::new();
                opened.read_to_end(&mut payload).await.map_err(failed)?;
                self.submit_whole(client, payload.into(), &source, patience).await
            }
            length => self.submit_stream(client, opened, length, &source, patience).await,
        }
    }

    async fn submit_whole(
        &self,
        client: &Client,
        payload: Bytes,
        source: &str,
        patience: &Patience,
    ) -> Result<Vec<Submitted>, CliError> {
        let bytes = payload.len() as u64;
        let mut transaction = self.transaction(payload);
        let handles = loop {
            patience.room(client, client.ready(bytes)).await?;
            match client.submit_to(&self.destinations.0, transaction).await {
                Ok(handles) => break handles,
                Err(refused) if matches!(refused.error, ClientError::WindowFull { .. }) => {
                    transaction = *refused.transaction;
                }
                Err(refused) => return Err(refused.into()),
            }
        };
        let submitted = |handle| Submitted { handle, bytes, source: source.to_owned() };
        Ok(handles.into_iter().map(submitted).collect())
    }

    async fn submit_stream(
        &self,
        client: &Client,
        payload: impl tokio::io::AsyncRead + Unpin + std::marker::Send,
        length: Option<u64>,
        source: &str,
        patience: &Patience,
    ) -> Result<Vec<Submitted>, CliError> {
        let bar = progress::bytes(source, length);
        let mut payload = bar.wrap_async_read(payload);
        let handles = loop {
            patience.room(client, client.ready(length.unwrap_or_default())).await?;
            let transaction = self.transaction(Bytes::new());
            match client.submit_reader_to(&self.destinations.0, transaction, &mut payload, length).await {
                Ok(handles) => break handles,
                // Nothing was read yet: its place is taken first.
                Err(ClientError::WindowFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let bytes = bar.position();
        bar.finish_and_clear();
        let submitted = |handle| Submitted { handle, bytes, source: source.to_owned() };
        Ok(handles.into_iter().map(submitted).collect())
    }

    async fn submit_lines(
        &self,
        client: &Client,
        file: &Path,
        give: &Give,
        patience: &Patience,
    ) -> Result<(), CliError> {
        let source = file.display().to_string();
        let failed = |error| CliError::file(file, &error);
        let input: Box<dyn tokio::io::AsyncRead + Unpin + std::marker::Send> = if file == Path::new("-") {
            Box::new(tokio::io::stdin())
        } else {
            Box::new(tokio::fs::File::open(file).await.map_err(failed)?)
        };
        let unreadable = Cell::new(None);
        // Whoever writes the lines may take any time.
        let reading = Cell::new(false);
        let lines = stream::unfold(BufReader::new(input), async |mut input| {
            let mut line = Vec::new();
            reading.set(true);
            let read = input.read_until(b'\n', &mut line).await;
            reading.set(false);
            patience.renew();
            match read {
                Ok(0) => None,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    Some((self.transaction(line.into()), input))
                }
                Err(error) => {
                    unreadable.set(Some(error));
                    None
                }
            }
        });
        // A line's length is taken before it is submitted: what comes back is only its handle.
        let lengths = std::cell::RefCell::new(std::collections::VecDeque::new());
        let lines = lines.inspect(|line| lengths.borrow_mut().push_back(line.payload().len() as u64));
        let mut submitted = std::pin::pin!(client.submit_all(&self.destinations.0, lines));
        loop {
            let next = tokio::select! {
                biased;
                next = submitted.next() => next,
                () = tokio::time::sleep(LOOK.min(patience.limit)) => match reading.get() || !patience.is_over() {
                    true => continue,
                    false => return Err(patience.no_room(client)),
                },
            };
            let Some(handles) = next else { break };
            let bytes = lengths.borrow_mut().pop_front().unwrap_or_default();
            let one = |handle| Submitted { handle, bytes, source: source.clone() };
            patience.room(client, pass(give, handles?.into_iter().map(one).collect())).await?;
        }
        unreadable.take().map_or(Ok(()), |error| Err(failed(error)))
    }

    /// Waits for each transaction in the order of submission, and prints it.
    async fn print_all(
        &self,
        context: &Context,
        take: &mut tokio::sync::mpsc::Receiver<Submitted>,
        mut deadline: tokio::sync::watch::Receiver<Option<Instant>>,
    ) -> Result<Exit, CliError> {
        let mut worst = Exit::Done;
        let mut rows = Vec::new();
        while let Some(submitted) = take.recv().await {
            let over = async {
                // While transactions are still submitted there is no end yet; what ends without setting one has no more.
                let until = deadline.wait_for(Option::is_some).await.ok().and_then(|until| *until);
                tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
            };
            let waited = tokio::select! {
                biased;
                waited = submitted.handle.wait(self.wait.into(), Duration::MAX) => waited?,
                () = over => Waited::Unknown,
            };
            let (state, exit) = match waited {
                Waited::Reached => (reached(self.wait), Exit::Done),
                Waited::Rejected(reason) => (format!("rejected({})", reason.word()), Exit::Rejected),
                Waited::Expired => ("expired".to_owned(), Exit::Rejected),
                Waited::Unknown => ("unknown".to_owned(), Exit::Unknown),
            };
            if worst == Exit::Done || (worst == Exit::Unknown && exit == Exit::Rejected) {
                worst = if exit == Exit::Done { worst } else { exit };
            }
            if exit == Exit::Unknown {
                context.output.note(&unknown(&submitted.handle));
            }
            let row = sent(submitted, state);
            if context.output.is_json() {
                context.output.rows(&[row])?;
            } else {
                rows.push(row);
            }
        }
        if !context.output.is_json() && !rows.is_empty() {
            context.output.rows(&rows)?;
        }
        Ok(worst)
    }
}

async fn pass(give: &Give, submitted: Vec<Submitted>) {
    for one in submitted {
        // The printer ends before the submissions only when stdout is closed; then nobody wants to know.
        let _ = give.send(one).await;
    }
}

/// What is known of a transaction whose stage was not reached in time.
fn unknown(handle: &Handle) -> String {
    let (withheld, refused) = (handle.withheld(), handle.refused());
    let known = match handle.outcome() {
        Outcome::Submitted if refused.is_some() => {
            format!("the brokers refuse it: {}", refused.unwrap_or_default())
        }
        Outcome::Submitted if !withheld.is_empty() => {
            format!("the brokers have only part of it: nothing answers in {}", withheld.join(", "))
        }
        Outcome::Submitted => "the brokers do not have it yet".to_owned(),
        Outcome::Accepted => "the brokers have it, and no majority of the nodes has signed it yet".to_owned(),
        Outcome::Committed(_) => "it is committed, and not all nodes have signed it yet".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    let ticket = handle.ticket();
    format!(
        "no answer in time: {known}. The outbox keeps it, and the next `sealcast send` here goes on with it; ask again \
         with a reader's configuration: sealcast status {ticket} --config readers/NAME/client.toml"
    )
}

fn reached(wait: Wait) -> String {
    let stage: Stage = wait.into();
    format!("{stage:?}").to_lowercase()
}

fn sent(submitted: Submitted, state: String) -> Sent {
    let Submitted { handle, bytes, source } = submitted;
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
