//! What `send` submits: files, whole or as they are read, standard input, its lines; and how long it waits for room.
//! Must not wait for fates.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, BufReader, ReadBuf, SeekFrom};
use tokio::time::{Instant, Sleep};

use super::super::{CliError, Context, Exit, Output, progress};
use super::Send;
use crate::client::{Client, ClientError, Handle, SubmitError};
use crate::core::directory::Span;
use crate::store::outbox::OutboxError;

/// Payloads up to this length are read whole, so that several of them can share a parcel.
const WHOLE_BYTES: u64 = 512 * 1024;

/// How often it is looked whether lines still find room.
const LOOK: Duration = Duration::from_millis(200);

/// What is said when the outbox takes nothing more for now.
const NEARLY_FULL: &str = "the outbox is nearly full; it lets go of what is complete";

fn waiting(full: &impl std::fmt::Display, limit: Duration) -> String {
    format!("{full}: waiting for that, at most {} at a time", Span(limit))
}

/// When a submission last went on: what is waited for from then on has an end.
pub(super) struct Patience {
    pub(super) moved: Cell<Instant>,
    pub(super) limit: Duration,
    output: Output,
    /// Whether somebody was told that the outbox is full.
    said: Cell<bool>,
}

impl Patience {
    pub(super) fn new(limit: Duration, output: Output) -> Self {
        Self { moved: Cell::new(Instant::now()), limit, output, said: Cell::new(false) }
    }

    /// Awaits that the outbox has room for this many bytes of payload, after it had none. Errors: what it said, when it keeps
    /// nothing that could make room by ending; unavailable, when that takes too long.
    async fn outbox(&self, client: &Client, bytes: u64, full: OutboxError) -> Result<(), CliError> {
        let (_, most) = client.outbox_bytes();
        if client.kept().is_empty() || bytes > most {
            return Err(ClientError::from(full).into());
        }
        self.tell(&full);
        // Headers and proofs come on top; all that there is must do for what takes nearly all.
        let needed = match &full {
            OutboxError::Full { needed, .. } => (bytes + bytes / 8).max(*needed).min(most),
            _ => bytes,
        };
        let freed = async {
            loop {
                let (held, _) = client.outbox_bytes();
                if held.saturating_add(needed) <= most {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        self.room(client, freed).await
    }

    /// Says once what is waited for.
    fn tell(&self, full: &impl std::fmt::Display) {
        if !self.said.replace(true) {
            self.output.note(&waiting(full, self.limit));
        }
    }

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
pub(super) type Give = tokio::sync::mpsc::Sender<Submitted>;

/// A transaction that was submitted to one destination.
pub(super) struct Submitted {
    pub(super) handle: Handle,
    /// The file that it came from.
    pub(super) source: String,
}

fn from(source: &str, handles: Vec<Handle>) -> Vec<Submitted> {
    handles.into_iter().map(|handle| Submitted { handle, source: source.to_owned() }).collect()
}

/// Refuses a file that is not there before anything is submitted.
pub(super) fn there(file: &Path) -> Result<(), CliError> {
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

impl Send {
    pub(super) async fn submit_all(
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
                    self.submit_pipe(client, tokio::io::stdin(), "-", patience).await?
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
        if !meta.is_file() {
            return self.submit_pipe(client, opened, &source, patience).await;
        }
        if meta.len() <= WHOLE_BYTES {
            let mut payload = Vec::new();
            opened.read_to_end(&mut payload).await.map_err(failed)?;
            return self.submit_whole(client, payload.into(), &source, patience).await;
        }
        let bar = progress::bytes(&source, Some(meta.len()));
        let mut payload = bar.wrap_async_read(opened);
        let handles = loop {
            patience.room(client, client.ready(meta.len())).await?;
            let transaction = self.transaction(Bytes::new());
            match client.submit_file_to(self.destinations(), transaction, &mut payload).await {
                Ok(handles) => break handles,
                // It stands where it stood: its place is taken before it is sealed.
                Err(ClientError::WindowFull { .. }) => {}
                Err(ClientError::Outbox(full @ OutboxError::Full { .. })) => {
                    patience.outbox(client, meta.len(), full).await?;
                    payload.seek(SeekFrom::Start(0)).await.map_err(failed)?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        bar.finish_and_clear();
        Ok(from(&source, handles))
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
            match client.submit_to(self.destinations(), transaction).await {
                Ok(handles) => break handles,
                Err(refused) if matches!(refused.error, ClientError::WindowFull { .. }) => {
                    transaction = *refused.transaction;
                }
                Err(SubmitError {
                    error: ClientError::Outbox(full @ OutboxError::Full { .. }),
                    transaction: given,
                }) => {
                    patience.outbox(client, bytes, full).await?;
                    transaction = *given;
                }
                Err(refused) => return Err(refused.into()),
            }
        };
        Ok(from(source, handles))
    }

    /// Submits what comes from somebody who writes: its length is known at its end, and it can be read once.
    async fn submit_pipe(
        &self,
        client: &Client,
        mut payload: impl AsyncRead + Unpin + std::marker::Send,
        source: &str,
        patience: &Patience,
    ) -> Result<Vec<Submitted>, CliError> {
        let mut head = Vec::new();
        let read = (&mut payload).take(WHOLE_BYTES + 1).read_to_end(&mut head).await;
        read.map_err(|error| CliError::file(Path::new(source), &error))?;
        if head.len() as u64 <= WHOLE_BYTES {
            patience.renew();
            return self.submit_whole(client, head.into(), source, patience).await;
        }
        let bar = progress::bytes(source, None);
        let all = std::io::Cursor::new(head).chain(payload);
        let mut payload = bar.wrap_async_read(Paced::new(all, client.clone(), patience));
        let handles = loop {
            patience.room(client, client.ready(0)).await?;
            let transaction = self.transaction(Bytes::new());
            match client.submit_reader_to(self.destinations(), transaction, &mut payload, None).await {
                Ok(handles) => break handles,
                // Nothing was read yet: its place is taken first.
                Err(ClientError::WindowFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        };
        bar.finish_and_clear();
        Ok(from(source, handles))
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
        let input: Box<dyn AsyncRead + Unpin + std::marker::Send> = if file == Path::new("-") {
            Box::new(tokio::io::stdin())
        } else {
            Box::new(tokio::fs::File::open(file).await.map_err(failed)?)
        };
        let unreadable = Cell::new(None);
        // Whoever writes the lines may take any time.
        let reading = Cell::new(false);
        let lines = stream::unfold(BufReader::new(input), async |mut input| {
            let mut line = Vec::new();
            // What is on its way needs room too, and lines keep their order: the next one is taken when there is enough.
            while filling(client.outbox_bytes()) && !client.kept().is_empty() {
                patience.tell(&NEARLY_FULL);
                tokio::time::sleep(LOOK).await;
            }
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
        let mut submitted = std::pin::pin!(client.submit_all(self.destinations(), lines));
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
            patience.room(client, pass(give, from(&source, handles?))).await?;
        }
        unreadable.take().map_or(Ok(()), |error| Err(failed(error)))
    }
}

/// A payload that can be read once: while the outbox is nearly full nothing more of it is taken, because what was taken and
/// found no room would be lost. Where no room comes in time it goes on, and what does not fit then is told by name.
struct Paced<R> {
    payload: R,
    client: Client,
    limit: Duration,
    output: Output,
    /// Since when it waits for room, and until it looks again.
    waits: Option<(Instant, Pin<Box<Sleep>>)>,
    said: bool,
}

impl<R> Paced<R> {
    fn new(payload: R, client: Client, patience: &Patience) -> Self {
        let Patience { limit, output, .. } = *patience;
        Self { payload, client, limit, output, waits: None, said: false }
    }

    fn has_room(&self, waits: Duration) -> bool {
        waits >= self.limit || !filling(self.client.outbox_bytes()) || self.client.kept().is_empty()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.has_room(this.waits.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed())) {
            if !std::mem::replace(&mut this.said, true) {
                this.output.note(&waiting(&NEARLY_FULL, this.limit));
            }
            let (_, nap) = this.waits.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(LOOK))));
            ready!(nap.as_mut().poll(context));
            nap.as_mut().reset(Instant::now() + LOOK);
        }
        // Once it went on for want of room, it goes on.
        if this.waits.as_ref().is_some_and(|(since, _)| since.elapsed() < this.limit) {
            this.waits = None;
        }
        Pin::new(&mut this.payload).poll_read(context, into)
    }
}

/// What former runs left in the outbox, to be waited for and printed like what is submitted now.
pub(super) async fn pass_kept(context: &Context, give: &Give, kept: Vec<Handle>) -> Result<(), CliError> {
    if kept.is_empty() {
        context.output.note("the outbox holds nothing that is unfinished");
    }
    pass(give, from("outbox", kept)).await;
    Ok(())
}

/// Whether more than three quarters of an outbox's bytes are taken.
fn filling((held, most): (u64, u64)) -> bool {
    held > most / 4 * 3
}

async fn pass(give: &Give, submitted: Vec<Submitted>) {
    for one in submitted {
        // The printer ends before the submissions only when stdout is closed; then nobody wants to know.
        let _ = give.send(one).await;
    }
}
