//! What a reader subscribes to: from where, to which transactions, and the cursor by which it goes on.
//!
//! Must not call nodes (that is `feed`).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::{Freshness, ReadError};
use crate::core::id::{DestinationName, DestinationTag, IdError, Position, Time};
use crate::rpc::proto;

/// Where a feed goes on: behind a position of one destination's log. An application stores it with what it made of the
/// transactions before it, as text or with serde, and goes on there after a day as after a second, at any node.
///
/// ```
/// use sealcast::client::reader::Cursor;
/// let kept = "17.0@00112233445566778899aabbccddeeff";
/// let cursor: Cursor = kept.parse()?;
/// assert_eq!(cursor.position().index, 17);
/// assert_eq!(cursor.to_string(), kept);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub(super) group: DestinationTag,
    pub(super) position: Position,
}

impl Cursor {
    /// Everything up to here was given.
    pub fn position(&self) -> Position {
        self.position
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.position, self.group)
    }
}

impl FromStr for Cursor {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (position, group) = text.split_once('@').ok_or_else(|| IdError::Shape {
            what: "cursor",
            given: text.chars().take(128).collect(),
            shape: "POSITION@TAG, as a feed gave it",
        })?;
        Ok(Self { group: group.parse()?, position: position.parse()? })
    }
}

impl serde::Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a feed starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// At the first transaction.
    #[default]
    Start,
    /// At what is committed from now on.
    End,
    /// Behind what a feed gave earlier.
    Cursor(Cursor),
    /// After this position of the destination that is subscribed to.
    After(Position),
    /// At the last so many of the destination, counted before keys and headers choose among them: with those it gives at
    /// most so many.
    Last(u64),
    /// At this group time.
    Since(Time),
}

/// What to subscribe to. Without further words: everything from a start on, payloads included, and at the end whatever comes.
///
/// ```
/// use sealcast::client::reader::{From, Subscription};
/// let orders = Subscription::new(From::Start).key("customer-42").header("kind", "order");
/// let until_now = Subscription::new(From::Last(10)).until_end();
/// # let _ = (orders, until_now);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscription {
    pub(super) from: From,
    pub(super) stops: bool,
    pub(super) keys: Vec<Bytes>,
    pub(super) headers: Vec<(String, Bytes)>,
    pub(super) metadata_only: bool,
    pub(super) freshness: Freshness,
}

impl Subscription {
    /// To everything from here on.
    pub fn new(from: From) -> Self {
        Self { from, ..Self::default() }
    }

    /// Ends at the end of what the node holds, rather than wait for more.
    pub fn until_end(mut self) -> Self {
        self.stops = true;
        self
    }

    /// Only transactions with this ordering key, of 1 to 256 bytes; said again, with one of these keys, at most 64. The node
    /// finds them by the key's tag, whatever else was committed between them.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Only transactions with this header, name and value; said again, with all of these, at most 16. The node opens the
    /// private header of each transaction for it, and gives nothing of those that do not match.
    ///
    /// ```
    /// use sealcast::client::reader::{From, Subscription};
    ///
    /// // From the start to the end of today: two customers' orders in English, without what was ordered.
    /// let some = Subscription::new(From::Start).until_end().key("customer-42").key("customer-43");
    /// let some = some.header("language", "en").without_payload();
    /// ```
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Leaves the payloads out.
    pub fn without_payload(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    /// Waits, before it starts, until the node is as fresh as this: what [`From::End`], [`From::Last`] and
    /// [`Subscription::until_end`] are about.
    pub fn fresh(mut self, freshness: Freshness) -> Self {
        self.freshness = freshness;
        self
    }

    /// The request. Errors: [`ReadError::OtherCursor`].
    pub(super) fn request(
        &self,
        destination: &DestinationName,
        group: DestinationTag,
    ) -> Result<proto::SubscribeRequest, ReadError> {
        use proto::subscribe_request::From as Start;
        Ok(proto::SubscribeRequest {
            destination: destination.to_string(),
            from: match self.from {
                From::Start => None,
                From::End => Some(Start::End(true)),
                From::Cursor(cursor) if cursor.group != group => {
                    return Err(ReadError::OtherCursor { destination: destination.clone() });
                }
                From::Cursor(Cursor { position, .. }) | From::After(position) => Some(Start::After(position.into())),
                From::Last(count) => Some(Start::Last(count)),
                From::Since(time) => Some(Start::SinceMs(time.0)),
            },
            follow: !self.stops,
            metadata_only: self.metadata_only,
            group: Some(Bytes::copy_from_slice(&group.0)),
            keys: self.keys.clone(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| proto::Header { name: name.clone(), value: value.clone() })
                .collect(),
            freshness: Some(self.freshness.message()),
        })
    }
}
