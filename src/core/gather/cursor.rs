//! The offset rule: how far a partition's offset may advance (R16), and whether the partition is still the one that was
//! read (R17). One [`Cursor`] for each partition.

use std::collections::BTreeMap;

use crate::core::id::Digest;

/// What a record is, so that it can be known again: BLAKE3(u32 key length, key, value), over key and value as they were
/// read; a null value counts as an empty one. It covers both the key and the digest that R17 asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub Digest);

impl Identity {
    /// The identity of a record.
    pub fn of(key: &[u8], value: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes()).update(key).update(value);
        Self(Digest(*hasher.finalize().as_bytes()))
    }
}

/// What is durable for a partition: read on from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The first offset that has not passed.
    pub offset: i64,
    /// The offset and identity of the last record before it; `None` while there is none.
    pub previous: Option<(i64, Identity)>,
}

/// Why a partition is not the one that was read: records between the mark and its present content may be lost to this node
/// (R17). It calls for a durable gap, an alarm, a re-read from the start of the log and a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The mark is below the first offset that the partition still has: retention removed what was not read.
    #[error("offset {offset} is below the low watermark {low}")]
    Below {
        /// The mark's offset.
        offset: i64,
        /// The first offset there is.
        low: i64,
    },
    /// The mark is above the end: the log was cut or made anew.
    #[error("offset {offset} is above the end {end}")]
    Above {
        /// The mark's offset.
        offset: i64,
        /// The end.
        end: i64,
    },
    /// The log begins before the mark, though it began there when the mark was set and nothing was read since: it was made anew.
    #[error("the log begins at {low}, where it began at {offset} before")]
    Back {
        /// The mark's offset.
        offset: i64,
        /// The first offset there is.
        low: i64,
    },
    /// The previous record is another than the one that was read, or is gone although it should be there.
    #[error("the record at {offset} is not the one that was read")]
    Changed {
        /// The previous record's offset.
        offset: i64,
    },
}

impl Gap {
    /// Whether the same offset can be right later: never, what is gone stays gone.
    pub fn retryable(&self) -> bool {
        false
    }
}

impl Mark {
    /// Whether the partition, which now has `low..end`, is still the one of this mark. `previous` is what stands now at
    /// the previous record's offset (`None`: nothing). A previous record that retention removed is no gap while the offset
    /// itself is there. A mark without a previous record stands where the log began, and a log never begins earlier again.
    /// Errors: [`Gap`].
    pub fn check(&self, low: i64, end: i64, previous: Option<Identity>) -> Result<(), Gap> {
        let offset = self.offset;
        if offset > end {
            return Err(Gap::Above { offset, end });
        }
        if offset < low {
            return Err(Gap::Below { offset, low });
        }
        match self.previous {
            None if low < offset => Err(Gap::Back { offset, low }),
            Some((at, identity)) if at >= low && previous != Some(identity) => Err(Gap::Changed { offset: at }),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    identity: Identity,
    passed: bool,
}

/// One partition's progress: records are seen in order and pass in any order; the mark stands at the first that has not.
/// Costs one entry for each record that has not passed, and one for each run of those behind it that have.
#[derive(Debug, Clone)]
pub struct Cursor {
    mark: Mark,
    next: i64,
    /// Seen since the mark, by offset; the first has not passed. Of neighbours that have passed, the last stands for all:
    /// only its identity can become the mark's.
    window: BTreeMap<i64, Seen>,
}

impl Cursor {
    /// Goes on from a durable mark.
    pub fn new(mark: Mark) -> Self {
        Self { mark, next: mark.offset, window: BTreeMap::new() }
    }

    /// The offset to read next.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// A record was read. It does not pass until [`Cursor::pass`] says so. One that was seen before is ignored.
    pub fn see(&mut self, offset: i64, identity: Identity) {
        if offset >= self.next {
            self.window.insert(offset, Seen { identity, passed: false });
            self.next = offset.saturating_add(1);
        }
    }

    /// The batch ended here: offsets in between held no records.
    pub fn read_to(&mut self, next: i64) {
        self.next = self.next.max(next);
        self.settle();
    }

    /// A record is staged, decided, refused by its own bytes, or durably noted. Offsets before the mark are ignored, so a
    /// re-read record may pass again.
    pub fn pass(&mut self, offset: i64) {
        let Some(seen) = self.window.get_mut(&offset) else { return };
        seen.passed = true;
        let passed = |neighbour: Option<(&i64, &Seen)>| neighbour.filter(|(_, seen)| seen.passed).map(|(at, _)| *at);
        if let Some(before) = passed(self.window.range(..offset).next_back()) {
            self.window.remove(&before);
        }
        if passed(self.window.range(offset.saturating_add(1)..).next()).is_some() {
            self.window.remove(&offset);
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(first) = self.window.first_entry().filter(|first| first.get().passed) {
            let (offset, seen) = first.remove_entry();
            self.mark.previous = Some((offset, seen.identity));
        }
        self.mark.offset = self.window.first_key_value().map_or(self.next, |(offset, _)| *offset);
    }

    /// What to make durable, once what passed is durable itself.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// What remembering costs, in entries: records that have not passed, and runs behind them of those that have.
    pub fn open(&self) -> usize {
        self.window.len()
    }

    /// After a gap: everything from `low` on is read again.
    pub fn restart(&mut self, low: i64) {
        *self = Self::new(Mark { offset: low, previous: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> Identity {
        Identity::of(&[byte], b"value")
    }

    #[test]
    fn r16_the_mark_stands_at_the_first_record_that_has_not_passed() {
        let mut cursor = Cursor::new(Mark::default());
        for offset in 0..4u8 {
            cursor.see(offset.into(), id(offset));
        }
        cursor.pass(1);
        cursor.pass(2);
        assert_eq!(cursor.mark(), Mark::default());
        cursor.pass(0);
        assert_eq!(cursor.mark(), Mark { offset: 3, previous: Some((2, id(2))) });
        cursor.pass(0);
        cursor.pass(3);
        cursor.see(2, id(9));
        assert_eq!((cursor.mark().offset, cursor.open()), (4, 0));
    }

    #[test]
    fn r16_behind_one_that_waits_the_many_that_passed_cost_next_to_nothing() {
        let mut cursor = Cursor::new(Mark::default());
        for offset in 0..10_000 {
            cursor.see(offset, Identity::of(&offset.to_be_bytes(), b""));
        }
        // In any order; two wait.
        for offset in (1..10_000).map(|step| step * 7919 % 10_000).filter(|offset| *offset != 6000) {
            cursor.pass(offset);
        }
        assert_eq!((cursor.mark(), cursor.open()), (Mark::default(), 4));
        cursor.pass(0);
        assert_eq!(cursor.mark().offset, 6000);
        assert_eq!(cursor.mark().previous, Some((5999, Identity::of(&5999i64.to_be_bytes(), b""))));
        cursor.pass(6000);
        assert_eq!((cursor.mark().offset, cursor.open()), (10_000, 0));
        assert_eq!(cursor.mark().previous, Some((9999, Identity::of(&9999i64.to_be_bytes(), b""))));
    }

    #[test]
    fn offsets_without_records_are_passed_over() {
        let mut cursor = Cursor::new(Mark::default());
        cursor.see(3, id(3));
        cursor.read_to(9);
        assert_eq!(cursor.mark().offset, 3);
        cursor.pass(3);
        assert_eq!((cursor.mark(), cursor.next()), (Mark { offset: 9, previous: Some((3, id(3))) }, 9));
        cursor.restart(1);
        assert_eq!((cursor.mark(), cursor.next()), (Mark { offset: 1, previous: None }, 1));
    }

    #[test]
    fn r17_gaps_are_told_from_retention() {
        let mark = Mark { offset: 10, previous: Some((9, id(9))) };
        assert_eq!(mark.check(0, 10, Some(id(9))), Ok(()));
        assert_eq!(mark.check(10, 20, None), Ok(()), "retention removed the previous record only");
        assert_eq!(mark.check(0, 20, Some(id(8))), Err(Gap::Changed { offset: 9 }));
        assert_eq!(mark.check(0, 20, None), Err(Gap::Changed { offset: 9 }));
        assert_eq!(mark.check(11, 20, None), Err(Gap::Below { offset: 10, low: 11 }));
        assert_eq!(mark.check(0, 9, Some(id(9))), Err(Gap::Above { offset: 10, end: 9 }));
        assert_eq!(Mark::default().check(0, 5, None), Ok(()));
        // Read from where the log began, and nothing since: what lies before that now was never read.
        let begun = Mark { offset: 10, previous: None };
        assert_eq!(begun.check(10, 10, None), Ok(()));
        assert_eq!(begun.check(0, 20, None), Err(Gap::Back { offset: 10, low: 0 }));
    }

    #[test]
    fn key_and_value_do_not_run_together() {
        assert_ne!(Identity::of(b"a", b"bc"), Identity::of(b"ab", b"c"));
    }
}
