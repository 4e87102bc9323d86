//! A transaction's private header: what its sender tells the nodes and the readers of a destination, and nobody between.
//!
//! Owns its bytes, ranges and limits (docs/wire-format.md, "Transactions"). Must not know keys.

use std::collections::BTreeMap;

use crate::core::id::{DestinationTag, OnPredecessor, PayloadTag, Position, Release, Time, TransactionId, closed_list};
use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer, in_range};

/// The version of the private header that this program writes and reads.
pub const VERSION: u8 = 1;

/// Both lengths of a payload whose true ones stand in the trailer, and the sealed length of such a transaction.
pub const IN_TRAILER: u64 = u64::MAX;

/// Length of the trailer, in bytes: payload length, carried length, payload tag.
pub const TRAILER_BYTES: usize = 48;

closed_list! {
    /// How the payload is carried.
    #[derive(Default)]
    pub enum Compression: u8 {
        /// 0, the default: as it is.
        #[default]
        None = 0 "none",
        /// 1: one or more zstd frames (RFC 8878), windows of at most 8 MiB, no dictionary.
        Zstd = 1 "zstd",
    }
}

closed_list! {
    /// What hides a transaction's length.
    #[derive(Default)]
    pub enum Padding: u8 {
        /// 0, the default: nothing.
        #[default]
        None = 0 "none",
        /// 1: zeros after the payload, up to Padmé's next length: at most 12 % more, and of the length only its order of
        /// magnitude and a few bits show.
        Padme = 1 "padme",
    }
}

impl Padding {
    /// The length that `content` bytes are padded to.
    pub fn padded(self, content: u64) -> u64 {
        match self {
            Self::None => content,
            Self::Padme => padme(content),
        }
    }
}

/// Padmé (Nikitin and others, "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", section 4).
fn padme(length: u64) -> u64 {
    if length < 2 {
        return length;
    }
    let exponent = length.ilog2();
    let significant = exponent.ilog2() + 1;
    let mask = (1u64 << (exponent - significant)) - 1;
    length.saturating_add(mask) & !mask
}

/// How long the payload is and what its tag is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// Its length as the application gave it, in bytes.
    pub bytes: u64,
    /// Its length as it is carried, in bytes: the same unless it is compressed.
    pub carried: u64,
    /// HMAC-SHA256 under a key that only its sender has (R6).
    pub tag: PayloadTag,
}

impl Payload {
    /// A payload that is carried as it is.
    pub fn plain(bytes: u64, tag: PayloadTag) -> Self {
        Self { bytes, carried: bytes, tag }
    }

    fn write(&self, to: &mut Writer) {
        to.u64(self.bytes).u64(self.carried).put(&self.tag.0);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            bytes: from.u64("payload length")?,
            carried: from.u64("carried length")?,
            tag: PayloadTag(from.array("payload tag")?),
        })
    }

    fn check(&self, compression: Compression) -> Result<(), WireError> {
        in_range(self.bytes, 0, limits::PAYLOAD_BYTES, "payload length")?;
        in_range(self.carried, 0, limits::PAYLOAD_BYTES, "carried length")?;
        if compression == Compression::None && self.carried != self.bytes {
            return Err(WireError::Invalid { field: "carried length", expected: "the payload length: not compressed" });
        }
        Ok(())
    }

    pub(super) fn trailer(&self) -> Vec<u8> {
        let mut bytes = Writer::with_capacity(TRAILER_BYTES);
        self.write(&mut bytes);
        bytes.finish()
    }

    pub(super) fn from_trailer(bytes: &[u8], compression: Compression) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let payload = Self::read(&mut reader)?;
        reader.finish("trailer")?;
        payload.check(compression)?;
        Ok(payload)
    }
}

/// A transaction that must be decided first. Its destination is that of the transaction that names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Predecessor {
    /// Which.
    pub transaction: TransactionId,
    /// Its deadline: past it, it is decided too, so the wait is bounded (R9).
    pub deadline: Time,
}

/// Compare-and-set on the ordering key's last position (R9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum ExpectedVersion {
    /// 0, the default: whatever it is.
    #[default]
    Any,
    /// 1: nothing of this key was committed yet.
    Absent,
    /// 2: the last of this key was committed there.
    At(Position),
}

/// What differs from one destination to the next.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Order {
    /// What must be decided there first.
    pub predecessor: Option<Predecessor>,
    /// What it does when that was rejected or expired.
    pub on_predecessor: OnPredecessor,
    /// When it may follow.
    pub release: Release,
    /// The version of its ordering key that it expects; other than [`ExpectedVersion::Any`] only with an ordering key.
    pub expected_version: ExpectedVersion,
}

/// What only the sender and the destinations know of a transaction, besides its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrivateHeader {
    /// The unit of fate.
    pub id: TransactionId,
    /// Past this group time it expires, unless it has a fate.
    pub deadline: Time,
    /// Its payload, or `None` when that is told in the trailer: then it is alone in its parcel and not padded.
    pub payload: Option<Payload>,
    /// How the payload is carried.
    pub compression: Compression,
    /// What hides its length.
    pub padding: Padding,
    /// Related transactions have the same: 1 to 256 bytes.
    pub ordering_key: Option<Vec<u8>>,
    /// Equal keys of one sender have one effect: 1 to 256 bytes.
    pub idempotency_key: Option<Vec<u8>>,
    /// A media type, for readers: 1 to 128 bytes.
    pub content_type: Option<String>,
    /// A W3C `traceparent`, and after a comma a `tracestate`: 1 to 512 bytes.
    pub trace: Option<String>,
    /// The application's headers, in its order: at most 64, names of 1 to 128 bytes, values of at most 4096.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Every destination of the parcel.
    pub destinations: BTreeMap<DestinationTag, Order>,
}

impl PrivateHeader {
    /// A header with nothing optional, for these destinations.
    pub fn new(
        id: TransactionId,
        deadline: Time,
        payload: Option<Payload>,
        destinations: impl IntoIterator<Item = DestinationTag>,
    ) -> Self {
        Self {
            id,
            deadline,
            payload,
            compression: Compression::None,
            padding: Padding::None,
            ordering_key: None,
            idempotency_key: None,
            content_type: None,
            trace: None,
            headers: Vec::new(),
            destinations: destinations.into_iter().map(|tag| (tag, Order::default())).collect(),
        }
    }

    /// Its bytes. Errors: [`WireError`] with the field that is beyond its limit or at odds with another.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        self.check()?;
        let nowhere = Payload { bytes: IN_TRAILER, carried: IN_TRAILER, tag: PayloadTag([0; 32]) };
        let mut to = Writer::with_capacity(256);
        to.u8(VERSION).put(&self.id.to_bytes()).u64(self.deadline.0);
        self.payload.unwrap_or(nowhere).write(&mut to);
        to.u8(self.compression.number()).u8(self.padding.number());
        to.short_bytes(self.ordering_key.as_deref().unwrap_or_default());
        to.short_bytes(self.idempotency_key.as_deref().unwrap_or_default());
        to.short_bytes(self.content_type.as_deref().unwrap_or_default().as_bytes());
        to.short_bytes(self.trace.as_deref().unwrap_or_default().as_bytes());
        to.u8(self.headers.len() as u8); // at most 64
        for (name, value) in &self.headers {
            to.short_bytes(name.as_bytes()).short_bytes(value);
        }
        to.u8(self.destinations.len() as u8); // at most 16
        for (tag, order) in &self.destinations {
            to.put(&tag.0).u8(order.on_predecessor.number()).u8(order.release.number());
            to.flag(order.predecessor.is_some());
            if let Some(predecessor) = order.predecessor {
                to.put(&predecessor.transaction.to_bytes()).u64(predecessor.deadline.0);
            }
            match order.expected_version {
                ExpectedVersion::Any => to.u8(0),
                ExpectedVersion::Absent => to.u8(1),
                ExpectedVersion::At(position) => to.u8(2).u64(position.index).u32(position.number),
            };
        }
        let bytes = to.finish();
        in_range(bytes.len() as u64, 1, limits::PRIVATE_HEADER_BYTES as u64, "private header")?;
        Ok(bytes)
    }

    /// Reads exactly one header. Errors: [`WireError`]; of these [`WireError::Unknown`] says that a later version may know it.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        in_range(bytes.len() as u64, 1, limits::PRIVATE_HEADER_BYTES as u64, "private header")?;
        let mut from = Reader::new(bytes);
        let version = from.u8("private header: version")?;
        if version != VERSION {
            return Err(WireError::Unknown { field: "private header: version", value: version.into() });
        }
        let id = transaction(&mut from, "transaction id")?;
        let deadline = Time(from.u64("deadline")?);
        let payload = Payload::read(&mut from)?;
        let in_trailer = payload.bytes == IN_TRAILER;
        if in_trailer && (payload.carried != IN_TRAILER || payload.tag.0 != [0; 32]) {
            return Err(WireError::Invalid { field: "payload tag", expected: "nothing here: it is in the trailer" });
        }
        let compression = from.listed(Compression::from_number, "compression")?;
        let padding = from.listed(Padding::from_number, "padding")?;
        let ordering_key = optional(from.short_bytes(limits::KEY_BYTES, "ordering key")?);
        let idempotency_key = optional(from.short_bytes(limits::KEY_BYTES, "idempotency key")?);
        let content_type =
            text(from.short_bytes(limits::CONTENT_TYPE_BYTES, "content type")?, "content type")?.map(str::to_owned);
        let trace = text(from.short_bytes(limits::TRACE_BYTES, "trace context")?, "trace context")?.map(str::to_owned);
        let count = from.u8("headers")?;
        in_range(count.into(), 0, limits::HEADERS as u64, "headers")?;
        let mut headers = Vec::with_capacity(count.into());
        for _ in 0..count {
            let name = text(from.short_bytes(limits::HEADER_NAME_BYTES, "header name")?, "header name")?;
            let name = name.ok_or(WireError::Invalid { field: "header name", expected: "at least one byte" })?;
            headers.push((name.to_owned(), from.short_bytes(limits::HEADER_VALUE_BYTES, "header value")?.to_vec()));
        }
        let destinations = orders(&mut from)?;
        from.finish("private header")?;
        let header = Self {
            id,
            deadline,
            payload: (!in_trailer).then_some(payload),
            compression,
            padding,
            ordering_key,
            idempotency_key,
            content_type,
            trace,
            headers,
            destinations,
        };
        header.check()?;
        Ok(header)
    }

    /// What holds for headers that are written and for those that are read.
    fn check(&self) -> Result<(), WireError> {
        let most = |length: usize, least: usize, most: usize, field| {
            in_range(length as u64, least as u64, most as u64, field).map(drop)
        };
        let key = |key: &Option<Vec<u8>>, field| {
            key.as_ref().map_or(Ok(()), |key| most(key.len(), 1, limits::KEY_BYTES, field))
        };
        let text = |text: &Option<String>, longest, field| {
            text.as_ref().map_or(Ok(()), |text| most(text.len(), 1, longest, field))
        };
        match &self.payload {
            Some(payload) => payload.check(self.compression)?,
            None if self.padding != Padding::None => {
                return Err(WireError::Invalid { field: "padding", expected: "none: the length is in the trailer" });
            }
            None => {}
        }
        key(&self.ordering_key, "ordering key")?;
        key(&self.idempotency_key, "idempotency key")?;
        text(&self.content_type, limits::CONTENT_TYPE_BYTES, "content type")?;
        text(&self.trace, limits::TRACE_BYTES, "trace context")?;
        most(self.headers.len(), 0, limits::HEADERS, "headers")?;
        for (name, value) in &self.headers {
            most(name.len(), 1, limits::HEADER_NAME_BYTES, "header name")?;
            most(value.len(), 0, limits::HEADER_VALUE_BYTES, "header value")?;
        }
        most(self.destinations.len(), 1, limits::DESTINATIONS, "destinations")?;
        for order in self.destinations.values() {
            if order.expected_version != ExpectedVersion::Any && self.ordering_key.is_none() {
                return Err(WireError::Invalid { field: "expected version", expected: "none without an ordering key" });
            }
            if order.predecessor.is_some_and(|predecessor| predecessor.transaction == self.id) {
                return Err(WireError::Invalid { field: "predecessor", expected: "another transaction" });
            }
        }
        Ok(())
    }
}

fn optional(bytes: &[u8]) -> Option<Vec<u8>> {
    (!bytes.is_empty()).then(|| bytes.to_vec())
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<Option<&'a str>, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid { field, expected: "UTF-8" })?;
    Ok((!text.is_empty()).then_some(text))
}

fn transaction(from: &mut Reader<'_>, field: &'static str) -> Result<TransactionId, WireError> {
    TransactionId::from_bytes(from.array(field)?)
        .map_err(|_| WireError::Invalid { field, expected: "a UUID of version 7" })
}

/// The part for each destination, ascending by tag.
fn orders(from: &mut Reader<'_>) -> Result<BTreeMap<DestinationTag, Order>, WireError> {
    let count = from.u8("destinations")?;
    in_range(count.into(), 1, limits::DESTINATIONS as u64, "destinations")?;
    let mut orders = BTreeMap::new();
    for _ in 0..count {
        let tag = DestinationTag(from.array("destination tag")?);
        if orders.last_key_value().is_some_and(|(before, _)| *before >= tag) {
            return Err(WireError::Invalid { field: "destination tag", expected: "ascending tags, each once" });
        }
        let on_predecessor = from.listed(OnPredecessor::from_number, "predecessor's rule")?;
        let release = from.listed(Release::from_number, "release")?;
        let predecessor = if from.flag("predecessor")? {
            let transaction = transaction(from, "predecessor")?;
            Some(Predecessor { transaction, deadline: Time(from.u64("predecessor's deadline")?) })
        } else {
            None
        };
        let expected_version = match from.u8("expected version")? {
            0 => ExpectedVersion::Any,
            1 => ExpectedVersion::Absent,
            2 => ExpectedVersion::At(Position {
                index: from.u64("expected version")?,
                number: from.u32("expected version")?,
            }),
            other => return Err(WireError::Unknown { field: "expected version", value: other.into() }),
        };
        orders.insert(tag, Order { predecessor, on_predecessor, release, expected_version });
    }
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> PrivateHeader {
        let id = TransactionId::from_parts(Time(1_000), [1; 10]);
        let before = TransactionId::from_parts(Time(900), [2; 10]);
        let tags = [DestinationTag([1; 16]), DestinationTag([2; 16])];
        let mut header = PrivateHeader::new(id, Time(9_000), Some(Payload::plain(7, PayloadTag([3; 32]))), tags);
        header.padding = Padding::Padme;
        header.ordering_key = Some(b"customer-42".to_vec());
        header.idempotency_key = Some(vec![0xff; limits::KEY_BYTES]);
        header.content_type = Some("application/json".to_owned());
        header.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        header.headers = vec![("a".to_owned(), b"1".to_vec()), ("a".to_owned(), Vec::new())];
        header.destinations.insert(
            tags[1],
            Order {
                predecessor: Some(Predecessor { transaction: before, deadline: Time(8_000) }),
                on_predecessor: OnPredecessor::GoOn,
                release: Release::Complete,
                expected_version: ExpectedVersion::At(Position { index: 17, number: 3 }),
            },
        );
        header
    }

    #[test]
    fn a_header_reads_what_it_writes() {
        let mut plain = PrivateHeader::new(full().id, Time(1), None, [DestinationTag([9; 16])]);
        assert_eq!(PrivateHeader::decode(&plain.encode().expect("writes")), Ok(plain.clone()));
        plain.ordering_key = Some(b"k".to_vec());
        plain
            .destinations
            .insert(DestinationTag([9; 16]), Order { expected_version: ExpectedVersion::Absent, ..Order::default() });
        for header in [plain, full()] {
            assert_eq!(PrivateHeader::decode(&header.encode().expect("writes")), Ok(header));
        }
    }

    #[test]
    fn no_prefix_and_no_longer_header_is_read() {
        let bytes = full().encode().expect("writes");
        for length in 0..bytes.len() {
            assert!(PrivateHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(PrivateHeader::decode(&longer), Err(WireError::Trailing { after: "private header", left: 1 }));
    }

    #[test]
    fn what_a_later_version_may_know_is_unknown_and_no_verdict() {
        let bytes = full().encode().expect("writes");
        let unknown = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            PrivateHeader::decode(&bytes)
        };
        for (at, value) in [(0, 2), (73, 2), (74, 2)] {
            let error = unknown(at, value).expect_err("unknown");
            assert!(matches!(error, WireError::Unknown { value: 2, .. }) && error.retryable(), "{error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_on_both_sides() {
        type Change = Box<dyn Fn(&mut PrivateHeader)>;
        let wrong: Vec<(&str, Change)> = vec![
            ("carried length", Box::new(|header| header.payload.as_mut().expect("known").carried = 8)),
            (
                "payload length",
                Box::new(|header| {
                    header.payload = Some(Payload::plain(limits::PAYLOAD_BYTES + 1, PayloadTag([0; 32])));
                }),
            ),
            ("padding", Box::new(|header| header.payload = None)),
            ("expected version", Box::new(|header| header.ordering_key = None)),
            ("ordering key", Box::new(|header| header.ordering_key = Some(Vec::new()))),
            ("idempotency key", Box::new(|header| header.idempotency_key = Some(vec![1; limits::KEY_BYTES + 1]))),
            ("header name", Box::new(|header| header.headers[0].0.clear())),
            ("header value", Box::new(|header| header.headers[0].1 = vec![0; limits::HEADER_VALUE_BYTES + 1])),
            ("headers", Box::new(|header| header.headers = vec![("a".to_owned(), Vec::new()); 65])),
            ("destinations", Box::new(|header| header.destinations.clear())),
            ("private header", Box::new(|header| header.headers = vec![("a".to_owned(), vec![0; 4096]); 8])),
        ];
        for (name, change) in wrong {
            let mut header = full();
            change(&mut header);
            let error = header.encode().expect_err(name).to_string();
            assert!(error.starts_with(name), "{name}: {error}");
        }
    }

    #[test]
    fn padme_adds_at_most_12_percent_and_never_takes() {
        for (length, padded) in [(0, 0), (1, 1), (2, 2), (8, 8), (9, 10), (100, 104), (1000, 1024), (65_537, 67_584)] {
            assert_eq!(padme(length), padded, "{length}");
        }
        for length in (0..2_000_000u64).step_by(77) {
            let padded = padme(length);
            assert!(padded >= length && padded * 100 <= length * 112 && padme(padded) == padded, "{length}");
        }
    }
}
