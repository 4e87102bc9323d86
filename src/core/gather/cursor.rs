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

/// So many records are remembered one by one; of more, up to [`RUN`] neighbours cost one entry together.
const ONE_BY_ONE: usize = 4096;

/// Longest run of offsets that one entry stands for while some of them wait.
const RUN: i64 = 64;

/// Neighbouring records that were seen. The last one's identity stands for all: where some of them wait, the mark stands before
/// the first.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first: i64,
    /// Of the last.
    identity: Identity,
    /// Those that have not passed, by their distance from the first.
    waiting: u64,
}

/// One partition's progress: records are seen in order and pass in any order; the mark stands at the first that has not.
/// Costs one entry for each record that has not passed, and one for each run of those behind it that have; when thousands
/// wait, one for up to 64 of them: the mark may then stand some records earlier than it could.
#[derive(Debug, Clone)]
pub struct Cursor {
    mark: Mark,
    next: i64,
    /// Seen since the mark, by the run's last offset; something of the first has not passed. Of neighbouring runs that have
    /// passed, one stands for all: only the last one's identity can become the mark's.
    window: BTreeMap<i64, Seen>,
    /// Entries at which neighbours are put together.
    most: usize,
}

impl Cursor {
    /// Goes on from a durable mark.
    pub fn new(mark: Mark) -> Self {
        Self { mark, next: mark.offset, window: BTreeMap::new(), most: ONE_BY_ONE }
    }

    /// The offset to read next.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// A record was read. It does not pass until [`Cursor::pass`] says so. One that was seen before is ignored.
    pub fn see(&mut self, offset: i64, identity: Identity) {
        if offset >= self.next {
            self.window.insert(offset, Seen { first: offset, identity, waiting: 1 });
            self.next = offset.saturating_add(1);
            if self.window.len() >= self.most {
                self.put_together();
                self.most = ONE_BY_ONE.max(2 * self.window.len());
            }
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
        let Some((&last, seen)) = self.window.range_mut(offset..).next() else { return };
        let bit = u32::try_from(offset.saturating_sub(seen.first)).ok().and_then(|at| 1u64.checked_shl(at));
        let Some(bit) = bit.filter(|bit| seen.waiting & bit != 0) else { return };
        seen.waiting &= !bit;
        if seen.waiting != 0 {
            return;
        }
        let first = seen.first;
        let passed = |neighbour: Option<(&i64, &Seen)>| {
            neighbour.filter(|(_, seen)| seen.waiting == 0).map(|(last, seen)| (*last, seen.first))
        };
        let before = passed(self.window.range(..last).next_back());
        let after = passed(self.window.range(last.saturating_add(1)..).next());
        let first = before.map_or(first, |(_, first)| first);
        if let Some((before, _)) = before {
            self.window.remove(&before);
        }
        if after.is_some() {
            self.window.remove(&last);
        }
        if let Some(stands) = self.window.get_mut(&after.map_or(last, |(after, _)| after)) {
            stands.first = first;
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(first) = self.window.first_entry().filter(|first| first.get().waiting == 0) {
            let (offset, seen) = first.remove_entry();
            self.mark.previous = Some((offset, seen.identity));
        }
        self.mark.offset = self.window.first_key_value().map_or(self.next, |(_, seen)| seen.first);
        if self.window.len() < ONE_BY_ONE / 2 {
            self.most = ONE_BY_ONE;
        }
    }

    /// Makes one entry of neighbours that lie within [`RUN`] offsets.
    fn put_together(&mut self) {
        let mut runs: BTreeMap<i64, Seen> = BTreeMap::new();
        let mut open: Option<(i64, Seen)> = None;
        for (last, seen) in std::mem::take(&mut self.window) {
            match &mut open {
                Some((end, run)) if last.saturating_sub(run.first) < RUN => {
                    let at = u32::try_from(seen.first.saturating_sub(run.first)).unwrap_or(0);
                    run.waiting |= seen.waiting.checked_shl(at).unwrap_or(0);
                    (*end, run.identity) = (last, seen.identity);
                }
                _ => runs.extend(open.replace((last, seen))),
            }
        }
        runs.extend(open);
        self.window = runs;
    }

    /// What to make durable, once what passed is durable itself.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// What remembering costs, in entries: records that have not passed (or runs of them, when they are many), and runs behind
    /// them of those that have.
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
        for offset in 0..4_000 {
            cursor.see(offset, Identity::of(&offset.to_be_bytes(), b""));
        }
        // In any order; two wait.
        for offset in (1..4_000).map(|step| step * 7919 % 4_000).filter(|offset| *offset != 2400) {
            cursor.pass(offset);
        }
        assert_eq!((cursor.mark(), cursor.open()), (Mark::default(), 4));
        cursor.pass(0);
        assert_eq!(cursor.mark().offset, 2400);
        assert_eq!(cursor.mark().previous, Some((2399, Identity::of(&2399i64.to_be_bytes(), b""))));
        cursor.pass(2400);
        assert_eq!((cursor.mark().offset, cursor.open()), (4_000, 0));
        assert_eq!(cursor.mark().previous, Some((3999, Identity::of(&3999i64.to_be_bytes(), b""))));
    }

    #[test]
    fn r16_the_many_that_wait_cost_little_and_pass_in_any_order() {
        const MANY: i64 = 200_000;
        let mut cursor = Cursor::new(Mark::default());
        // Every seventh offset holds no record; the first 65 wait, and all behind them.
        let held = |offset: &i64| offset % 7 != 3;
        (0..MANY).filter(held).for_each(|offset| cursor.see(offset, Identity::of(&offset.to_be_bytes(), b"")));
        cursor.read_to(MANY);
        assert!(cursor.open() < 3 * ONE_BY_ONE, "{} entries for {MANY} records", cursor.open());
        assert_eq!(cursor.mark(), Mark::default());
        for offset in (65..MANY).map(|step| 65 + step * 7919 % (MANY - 65)).chain(65..MANY) {
            cursor.pass(offset);
        }
        // What was never seen never passes, and what passed does so again without effect.
        assert_eq!(cursor.mark(), Mark::default());
        assert!(cursor.open() <= 4, "{} entries", cursor.open());
        for offset in (0..65).rev() {
            assert_eq!(cursor.mark().offset, 0);
            cursor.pass(offset);
        }
        assert_eq!((cursor.mark().offset, cursor.open()), (MANY, 0));
        let last = (0..MANY).rev().find(held).unwrap_or_default();
        assert_eq!(cursor.mark().previous, Some((last, Identity::of(&last.to_be_bytes(), b""))));
    }

    #[test]
    fn r16_of_the_many_the_mark_never_passes_one_that_waits_and_names_what_stands_before_it() {
        const MANY: i64 = 20_000;
        let mut cursor = Cursor::new(Mark::default());
        (0..MANY).for_each(|offset| cursor.see(offset, Identity::of(&offset.to_be_bytes(), b"")));
        let mut waits: std::collections::BTreeSet<i64> = (0..MANY).collect();
        // From the front, but every hundredth one by one only at the end.
        for offset in (0..MANY).filter(|offset| offset % 100 != 57).chain((0..MANY).filter(|offset| offset % 100 == 57))
        {
            cursor.pass(offset);
            waits.remove(&offset);
            let (mark, first) = (cursor.mark(), waits.first().copied().unwrap_or(MANY));
            assert!(mark.offset <= first && first - mark.offset < RUN, "{} for {first}", mark.offset);
            let before = mark.offset.checked_sub(1).filter(|before| *before >= 0);
            assert_eq!(mark.previous, before.map(|before| (before, Identity::of(&before.to_be_bytes(), b""))));
        }
        assert_eq!((cursor.mark().offset, cursor.open()), (MANY, 0));
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
    fn r17_of_a_log_made_anew_nothing_that_was_not_read_is_passed_over() {
        let (old, new) = (|at: i64| Identity::of(b"old", &at.to_be_bytes()), |at: i64| id(at as u8));
        for (read, low, end) in (0..6)
            .flat_map(|read| (0..8).map(move |low| (read, low)))
            .flat_map(|(read, low)| (low..10).map(move |end| (read, low, end)))
        {
            let mark = Mark { offset: read, previous: (read > 0).then(|| (read - 1, old(read - 1))) };
            let there = (low..end).contains(&(read - 1)).then(|| new(read - 1));
            // Whoever deletes a topic gives no sign but what lies in the next one of its name.
            if mark.check(low, end, there).is_ok() {
                assert_eq!(low, read, "read up to {read}, and now {low}..{end}: something before is passed over");
            }
        }
    }

    #[test]
    fn key_and_value_do_not_run_together() {
        assert_ne!(Identity::of(b"a", b"bc"), Identity::of(b"ab", b"c"));
    }
}
