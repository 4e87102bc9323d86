//! Whether what came out is what went in: every transaction once, every byte, on every node.
//!
//! Owns the comparison. Must not read or send.

use std::collections::BTreeMap;

use crate::client::reader::Event;
use crate::core::id::{Position, TransactionId};

/// Most differences that are told of one node.
const TOLD: usize = 10;

/// A transaction that was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    /// What people call it.
    pub name: String,
    /// Its payload's length in bytes.
    pub bytes: u64,
    /// Its payload's hash.
    pub hash: blake3::Hash,
    /// Where its receipt says that it was committed.
    pub position: Option<Position>,
}

/// What was submitted.
pub(super) type Expected = BTreeMap<TransactionId, Sent>;

/// What a node gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// Transactions that came out equal.
    pub equal: usize,
    /// Payload bytes in them.
    pub bytes: u64,
    /// What differs, for people; empty when nothing does. More than ten are only counted.
    pub differences: Vec<String>,
    /// How many differences there are.
    pub different: usize,
}

impl Compared {
    /// Notes a difference.
    pub(super) fn differs(&mut self, what: String) {
        self.different += 1;
        if self.differences.len() < TOLD {
            self.differences.push(what);
        }
    }
}

/// Compares a node's feed with what was submitted, event by event.
pub(super) struct Comparison<'a> {
    expected: &'a Expected,
    seen: BTreeMap<TransactionId, u32>,
    last: Position,
    current: Option<(TransactionId, Option<Position>, u64, blake3::Hasher)>,
    so_far: Compared,
}

impl<'a> Comparison<'a> {
    /// With these.
    pub(super) fn new(expected: &'a Expected) -> Self {
        let so_far = Compared::default();
        Self { expected, seen: BTreeMap::new(), last: Position::default(), current: None, so_far }
    }

    /// The node's next event.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Begin(committed) => {
                self.unfinished();
                if committed.position <= self.last && !self.seen.is_empty() {
                    self.so_far.differs(format!("position {} came after {}", committed.position, self.last));
                }
                self.last = committed.position;
                let id = committed.ticket.transaction;
                self.current = Some((id, Some(committed.position), 0, blake3::Hasher::new()));
            }
            Event::Data(data) => {
                if let Some((_, _, bytes, hasher)) = &mut self.current {
                    *bytes += data.len() as u64;
                    hasher.update(&data);
                }
            }
            Event::End => {
                if let Some((id, position, bytes, hasher)) = self.current.take() {
                    self.whole(id, position, bytes, hasher.finalize());
                }
            }
            Event::Progress(_) => {}
        }
    }

    fn unfinished(&mut self) {
        if let Some((id, ..)) = self.current.take() {
            self.so_far.differs(format!("transaction {id} has no end"));
        }
    }

    fn whole(&mut self, id: TransactionId, position: Option<Position>, bytes: u64, hash: blake3::Hash) {
        let times = self.seen.entry(id).or_default();
        *times += 1;
        let times = *times;
        let difference = match self.expected.get(&id) {
            None => format!("transaction {id} was never submitted"),
            Some(sent) if times > 1 => format!("{} ({id}) came {times} times", sent.name),
            Some(sent) if sent.bytes != bytes => {
                format!("{} ({id}) has {bytes} bytes and was sent with {}", sent.name, sent.bytes)
            }
            Some(sent) if sent.hash != hash => format!("{} ({id}) has other bytes than were sent", sent.name),
            Some(sent) if sent.position != position => {
                let place = |position: Option<Position>| position.map_or("nowhere".to_owned(), |at| at.to_string());
                let (here, there) = (place(position), place(sent.position));
                format!("{} ({id}) is at {here}, and its receipt says {there}", sent.name)
            }
            Some(_) => {
                self.so_far.equal += 1;
                self.so_far.bytes += bytes;
                return;
            }
        };
        self.so_far.differs(difference);
    }

    /// After the last event: what never came differs too.
    pub(super) fn finish(mut self) -> Compared {
        self.unfinished();
        let missing = self.expected.iter().filter(|(id, _)| !self.seen.contains_key(id));
        let missing: Vec<_> = missing.map(|(id, sent)| format!("{} ({id}) never came", sent.name)).collect();
        for text in missing {
            self.so_far.differs(text);
        }
        self.so_far
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::client::reader::Committed;
    use crate::core::id::{Digest, ParcelId, Ticket, Time};

    fn id(number: u8) -> TransactionId {
        TransactionId::from_parts(Time(1), [number; 10])
    }

    fn at(entry: u64) -> Position {
        format!("{entry}.0").parse().unwrap()
    }

    fn expected(payloads: &[&'static [u8]]) -> Expected {
        let sent = |(number, payload): (usize, &&'static [u8])| {
            let (bytes, hash) = (payload.len() as u64, blake3::hash(payload));
            let position = Some(at(number as u64 + 1));
            (id(number as u8), Sent { name: format!("file {number}"), bytes, hash, position })
        };
        payloads.iter().enumerate().map(sent).collect()
    }

    fn events(number: u8, entry: u64, pieces: &[&'static [u8]]) -> Vec<Event> {
        let committed = Committed {
            ticket: Ticket { destination: "orders".parse().unwrap(), transaction: id(number), deadline: Time(2) },
            sender: "web".parse().unwrap(),
            position: at(entry),
            parcel: ParcelId::from_parts(Time(1), [0; 10]),
            digest: Digest([0; 32]),
            committed: Time(1),
            payload_bytes: 0,
            key: None,
            headers: Vec::new(),
            content_type: None,
            idempotency_key: None,
            trace: None,
        };
        let data = pieces.iter().map(|piece| Event::Data(Bytes::from_static(piece)));
        [Event::Begin(Box::new(committed))].into_iter().chain(data).chain([Event::End]).collect()
    }

    fn compare(expected: &Expected, events: impl IntoIterator<Item = Event>) -> Compared {
        let mut comparison = Comparison::new(expected);
        events.into_iter().for_each(|event| comparison.take(event));
        comparison.finish()
    }

    #[test]
    fn equal_is_equal_however_it_comes_in_pieces() {
        let expected = expected(&[b"one", b""]);
        let mut all = events(0, 1, &[b"o", b"ne"]);
        all.extend(events(1, 2, &[]));
        all.push(Event::Progress(at(3)));
        assert_eq!(compare(&expected, all), Compared { equal: 2, bytes: 3, ..Compared::default() });
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let expected = expected(&[b"one", b"two"]);
        let good = || events(1, 2, &[b"two"]);
        let cases: [(Vec<Event>, &str); 7] = [
            ([events(0, 1, &[b"onE"]), good()].concat_all(), "other bytes"),
            ([events(0, 1, &[b"on"]), good()].concat_all(), "has 2 bytes"),
            ([events(0, 1, &[b"one"]), good(), events(1, 3, &[b"two"])].concat_all(), "came 2 times"),
            ([events(0, 1, &[b"one"]), good(), events(9, 3, &[b"x"])].concat_all(), "never submitted"),
            ([events(0, 0, &[b"one"]), good()].concat_all(), "its receipt says"),
            (events(0, 1, &[b"one"]), "never came"),
            ([good(), events(0, 1, &[b"one"])].concat_all(), "came after"),
        ];
        for (events, said) in cases {
            let compared = compare(&expected, events);
            assert_eq!(compared.different, 1, "{said}: {compared:?}");
            assert!(compared.differences.iter().any(|text| text.contains(said)), "{said}: {compared:?}");
        }
        let mut cut = events(0, 1, &[b"one"]);
        cut.pop();
        let compared = compare(&expected, [cut, good()].concat_all());
        assert_eq!((compared.equal, compared.different), (1, 2), "{compared:?}");
    }

    trait ConcatAll {
        fn concat_all(self) -> Vec<Event>;
    }

    impl<const N: usize> ConcatAll for [Vec<Event>; N] {
        fn concat_all(self) -> Vec<Event> {
            self.into_iter().flatten().collect()
        }
    }
}
