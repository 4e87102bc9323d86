//! Transactions as nodes give them, one message after the other. A feed whose node ends goes on at another, behind what it
//! gave, within a payload too.
//!
//! Owns the cursor. Must not say what nodes are asked (that is `wanted`), nor choose the node (that is `ask`).

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tonic::{Code, Streaming};

use super::committed::{Committed, committed};
use super::subscription::Cursor;
use super::wanted::{Wanted, open, open_rest};
use super::{ReadError, Reader, missed, refused};
use crate::core::id::{NodeName, Position};
use crate::rpc::proto;

/// How long a feed tries to go on by itself when no node gives it anything, and the pauses between its tries.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LAST: Duration = Duration::from_secs(2);

/// One message of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transaction begins.
    Begin(Box<Committed>),
    /// The next bytes of its payload, at most 1 MiB.
    Data(Bytes),
    /// It is whole.
    End,
    /// Everything committed up to here was looked at, and what was asked for was given.
    Progress(Position),
}

/// The transaction that is being given.
#[derive(Debug)]
struct Current {
    committed: Committed,
    /// Bytes of its payload that were given.
    given: u64,
    /// Bytes of it that are still to come.
    left: u64,
}

/// How long nothing was given, and how long to wait before it is tried again. It lives longer than a call: nodes begin a
/// subscription with where it starts, and that alone is nothing given.
#[derive(Debug, Default)]
struct Patience {
    until: Option<Duration>,
    pause: Duration,
}

impl Patience {
    /// The pause before the next try; `None` when it tried long enough, and then it begins anew.
    fn again(&mut self, now: Duration) -> Option<Duration> {
        let until = *self.until.get_or_insert(now + GOES_ON_WITHIN);
        let pause = self.pause;
        if now + pause >= until {
            *self = Self::default();
            return None;
        }
        self.pause = (pause * 2).clamp(AGAIN_FIRST, AGAIN_LAST);
        Some(pause)
    }
}

/// Transactions as nodes give them, in the order of the log.
///
/// When its node ends or cannot be reached any more, a feed goes on at another one, behind what it has given; only when no
/// node gives anything for 30 s does it say so, and the next call tries again. Its methods may be dropped while they wait,
/// and nothing is lost by it.
///
/// ```no_run
/// # async fn example(reader: sealcast::client::reader::Reader) -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::client::reader::{Event, From, Subscription};
/// use sealcast::core::id::DestinationName;
///
/// let mut feed = reader.subscribe(&DestinationName::new("orders")?, Subscription::new(From::Start)).await?;
/// while let Some(event) = feed.next().await? {
///     match event {
///         Event::Begin(committed) => println!("{} of {}", committed.ticket, committed.sender),
///         Event::Data(bytes) => println!("{} bytes", bytes.len()),
///         // Kept together with what was made of it, this is where a later run goes on.
///         Event::End => println!("{:?}", feed.cursor()),
///         Event::Progress(position) => println!("nothing more up to {position}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Feed {
    reader: Reader,
    wanted: Wanted,
    node: NodeName,
    /// The one that last gave nothing more: it is asked last.
    failed: Option<NodeName>,
    stream: Option<Streaming<proto::ReadResponse>>,
    /// What came first: by it the node was chosen.
    first: Option<proto::ReadResponse>,
    current: Option<Current>,
    /// Whether the stream gives the rest of `current` and nothing else.
    rest: bool,
    /// Whether the stream gave something.
    gave: bool,
    /// Whether the last message was progress: only behind that is everything given.
    looked: bool,
    patience: Patience,
    /// Everything up to here was given.
    cursor: Option<Position>,
    /// What was gathered of a transaction that is wanted whole.
    whole: Option<(Committed, Vec<u8>)>,
    ended: bool,
}

impl Feed {
    /// Begins a feed at the first node that gives something. Errors: [`ReadError`].
    pub(super) async fn begin(reader: Reader, wanted: Wanted) -> Result<Self, ReadError> {
        let (node, (first, stream)) = open(&reader, &wanted, None, None).await?;
        Ok(Self {
            reader,
            wanted,
            node,
            failed: None,
            stream: Some(stream),
            first,
            current: None,
            rest: false,
            gave: false,
            looked: false,
            patience: Patience::default(),
            cursor: None,
            whole: None,
            ended: false,
        })
    }

    /// The node that gives them now.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Everything up to here was given, whole: what to store with what was made of it. `None` before a subscription's first
    /// message, and for what is no subscription.
    pub fn cursor(&self) -> Option<Cursor> {
        let Wanted::All { group, .. } = &self.wanted else { return None };
        self.cursor.map(|position| Cursor { group: *group, position })
    }

    /// What comes next; `None` at the end. Errors: [`ReadError`]; after one that is retryable the next call goes on where
    /// this one was.
    pub async fn next(&mut self) -> Result<Option<Event>, ReadError> {
        let clock = self.reader.seams.clock.clone();
        loop {
            let before = self.cursor;
            let error = match self.step().await {
                Ok(event) => {
                    // A stream that begins where it was told to gave nothing yet.
                    let begins = matches!(event, Some(Event::Progress(_))) && !self.gave && self.cursor == before;
                    self.gave = true;
                    if !begins {
                        self.patience = Patience::default();
                    }
                    return Ok(event);
                }
                Err(error @ ReadError::Unavailable { .. }) => error,
                Err(error) => {
                    self.stream = None;
                    return Err(error);
                }
            };
            if self.stream.take().is_some() {
                self.failed = Some(self.node.clone());
            }
            let Some(pause) = self.patience.again(clock.monotonic()) else { return Err(error) };
            tracing::debug!(%error, "a feed goes on elsewhere");
            clock.sleep(pause).await;
        }
    }

    /// What comes next, from the node that gives; begins anew where there is none.
    async fn step(&mut self) -> Result<Option<Event>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        if self.stream.is_none() {
            self.go_on().await?;
        }
        let message = match (self.first.take(), &mut self.stream) {
            (Some(first), _) => Ok(Some(first)),
            (None, Some(stream)) => stream.message().await,
            (None, None) => Ok(None),
        };
        match message {
            Ok(Some(message)) => match self.take(message) {
                Ok(Some(event)) => Ok(Some(event)),
                // The node gives the rest of what another began.
                Ok(None) => Box::pin(self.step()).await,
                Err(error) => Err(error),
            },
            Ok(None) if self.current.is_some() => {
                Err(ReadError::Unavailable { said: format!("node {} ended the feed within a transaction", self.node) })
            }
            Ok(None) if self.goes_on() => {
                Err(ReadError::Unavailable { said: format!("node {} ended the feed", self.node) })
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            // A damaged body: another node has it too.
            Err(status) if status.code() == Code::DataLoss => {
                Err(ReadError::Unavailable { said: format!("node {}: {}", self.node, status.message()) })
            }
            Err(status) => Err(refused(&self.node, &status)),
        }
    }

    /// Whether there is more behind the end of a stream: a node that ends says nothing, one that gave everything says so.
    fn goes_on(&self) -> bool {
        matches!(&self.wanted, Wanted::All { subscription, .. } if !subscription.stops || !self.looked)
    }

    /// Whether payloads are left out.
    fn bare(&self) -> bool {
        matches!(&self.wanted, Wanted::All { subscription, .. } if subscription.metadata_only)
    }

    /// Begins anew where it was: with the rest of a transaction that was begun, else behind what was given. Errors:
    /// [`ReadError`].
    async fn go_on(&mut self) -> Result<(), ReadError> {
        let current = self.current.as_ref();
        let opened = match current {
            Some(Current { committed, given, .. }) => {
                open_rest(&self.reader, committed, *given, self.bare(), self.failed.as_ref()).await
            }
            None => open(&self.reader, &self.wanted, self.cursor, self.failed.as_ref()).await,
        };
        let (node, (first, stream)) = opened?;
        self.rest = current.is_some();
        self.gave = false;
        (self.node, self.first, self.stream) = (node, first, Some(stream));
        Ok(())
    }

    /// Takes a message; `None` for the start of what was begun already. Errors: [`ReadError`].
    fn take(&mut self, message: proto::ReadResponse) -> Result<Option<Event>, ReadError> {
        use proto::read_response::Part;
        let node = self.node.clone();
        let wrong = |cause: String| ReadError::Answer { node: node.clone(), cause };
        let disorder = || wrong("a message out of order".to_owned());
        let part = message.part.ok_or_else(|| wrong("a message without a part".to_owned()))?;
        let bare = self.bare();
        self.looked = matches!(part, Part::Progress(_));
        Ok(Some(match (part, &mut self.current) {
            (Part::Start(start), current) => {
                let offset = start.offset;
                let committed = committed(start).map_err(|error| wrong(error.to_string()))?;
                match current {
                    None if offset == 0 => {}
                    Some(current) if self.rest && offset == current.given && committed == current.committed => {
                        return Ok(None);
                    }
                    _ => return Err(disorder()),
                }
                let left = if bare { 0 } else { committed.payload_bytes };
                self.current = Some(Current { committed: committed.clone(), given: 0, left });
                Event::Begin(Box::new(committed))
            }
            (Part::Data(data), Some(current)) if data.len() as u64 <= current.left => {
                current.left -= data.len() as u64;
                current.given += data.len() as u64;
                Event::Data(data)
            }
            (Part::End(_), Some(Current { left: left @ 1.., .. })) => {
                let cause = format!("{left} bytes of the payload are missing at its end");
                return Err(wrong(cause));
            }
            (Part::End(_), Some(current)) => {
                self.cursor = Some(current.committed.position);
                self.current = None;
                if std::mem::take(&mut self.rest) {
                    self.stream = None;
                }
                self.ended = match &self.wanted {
                    Wanted::One { .. } => true,
                    Wanted::Key { history, .. } => !history,
                    Wanted::All { .. } => false,
                };
                Event::End
            }
            (Part::Progress(progress), None) => {
                let position = progress.held.map(Into::into).unwrap_or_default();
                // A node that is behind says where it is, and that is no step back.
                let position = self.cursor.map_or(position, |cursor| cursor.max(position));
                self.cursor = Some(position);
                Event::Progress(position)
            }
            (Part::Miss(miss), None) => return Err(missed(&self.node, &miss)),
            _ => return Err(disorder()),
        }))
    }

    /// The next whole transaction with its payload in memory, which may have `most` bytes; `None` at the end. Passes over
    /// progress. Errors: [`ReadError`]; [`ReadError::TooLarge`] for a longer one, after which the next call gives the one
    /// behind it.
    pub async fn transaction(&mut self, most: usize) -> Result<Option<(Committed, Bytes)>, ReadError> {
        while let Some(event) = self.next().await? {
            match (event, &mut self.whole) {
                (Event::Begin(committed), _) => {
                    let bytes = committed.payload_bytes;
                    if bytes > most as u64 {
                        return Err(ReadError::TooLarge { ticket: committed.ticket, bytes, most });
                    }
                    self.whole = Some((*committed, Vec::new()));
                }
                (Event::Data(data), Some((_, payload))) => payload.extend_from_slice(&data),
                (Event::End, whole) => {
                    if let Some((committed, payload)) = whole.take() {
                        return Ok(Some((committed, payload.into())));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The transactions as a stream, each whole with its payload in memory, which may have `most` bytes. It goes on after
    /// an error that is retryable, and after one that was too large; any other is its last item. With [`Committed::position`]
    /// of the last one that had its effect, [`From::After`](super::From::After) goes on behind it later.
    ///
    /// ```no_run
    /// use futures_util::{StreamExt, pin_mut};
    /// # async fn example(feed: sealcast::client::reader::Feed) -> Result<(), sealcast::client::reader::ReadError> {
    /// let transactions = feed.into_stream(1 << 20);
    /// pin_mut!(transactions);
    /// while let Some(next) = transactions.next().await {
    ///     let (committed, payload) = next?;
    ///     println!("{}: {} bytes", committed.position, payload.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_stream(self, most: usize) -> impl Stream<Item = Result<(Committed, Bytes), ReadError>> + Send {
        futures_util::stream::unfold(Some(self), move |feed| async move {
            let mut feed = feed?;
            let next = feed.transaction(most).await.transpose()?;
            let goes_on = match &next {
                Ok(_) | Err(ReadError::TooLarge { .. }) => true,
                Err(error) => error.retryable(),
            };
            Some((next, goes_on.then_some(feed)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_that_is_given_nothing_pauses_and_says_so_in_the_end() {
        let mut patience = Patience::default();
        let (mut now, mut pauses) = (Duration::from_secs(7), Vec::new());
        while let Some(pause) = patience.again(now) {
            pauses.push(pause);
            now += pause;
            assert!(pauses.len() < 100, "it ends");
        }
        assert_eq!(pauses[..3], [Duration::ZERO, AGAIN_FIRST, AGAIN_FIRST * 2]);
        assert_eq!(pauses.last(), Some(&AGAIN_LAST));
        assert!(now <= Duration::from_secs(7) + GOES_ON_WITHIN);
        assert_eq!(patience.again(now), Some(Duration::ZERO), "the next call tries again");
    }
}
