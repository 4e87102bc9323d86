//! Reads of a group's store: one moment of all tables.
//!
//! Owns look-ups. Must not write.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable};

use super::ranks;
use super::rows::{AlarmRow, Counts, DeferredRow, Place, SeenRow, StagedRow, decode_mark, unguard};
use super::staging::{body_row, staged_row};
use super::state::{Head, Parsed, StateView, directory, get_meta, held, name, named_row, read_row};
use super::tables::{
    Reading, Row as TableRow, Source, Tables, beginning, body_key, get, has, key_key, position_key, read_address,
    read_position, read_undecided_key, rows, transaction_key,
};
use crate::core::decide::{Claim, Row, View};
use crate::core::directory::Directory;
use crate::core::gather::{Address, Mark};
use crate::core::id::{
    DestinationName, Digest, IdempotencyTag, KeyTag, NodeName, Position, SenderName, Time, TransactionId,
    VerifyingKeyBytes,
};
use crate::store::StoreError;
use crate::store::bodies::{Bodies, BodyReader};

/// One moment of a group's store.
pub struct Snapshot {
    tables: Tables<Reading>,
    head: Head,
    parsed: Arc<Parsed>,
    bodies: Bodies,
}

/// A transaction's ciphertext on this node.
#[derive(Debug, Clone)]
pub struct Body {
    /// Length of the ciphertext, in bytes.
    pub length: u64,
    /// Its digest.
    pub digest: Digest,
    /// K_tx, wrapped under this node's storage key.
    pub wrapped_key: Vec<u8>,
    /// The bytes.
    pub reader: BodyReader,
}

/// Which log entries there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// What consensus remembers of the last purged entry.
    pub purged: Option<Vec<u8>>,
    /// First and last entry.
    pub entries: Option<RangeInclusive<u64>>,
}

fn log_entry(key: &[u8], row: &[u8]) -> Result<(u64, Bytes), StoreError> {
    let index = key.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::damaged("log", "?", "no index"))?;
    let bytes = unguard(key, row).ok_or_else(|| StoreError::damaged("log", index, "its checksum differs"))?;
    Ok((index, Bytes::copy_from_slice(bytes)))
}

/// Reads the whole log: every checksum, no hole.
pub(super) fn check_log<S: Source>(tables: &Tables<S>) -> Result<(), StoreError> {
    let mut last: Option<u64> = None;
    for found in tables.log()?.range::<&[u8]>(..).map_err(StoreError::failed("reading the log"))? {
        let (key, value) = found.map_err(StoreError::failed("reading the log"))?;
        let (index, _) = log_entry(key.value(), value.value())?;
        if let Some(last) = last
            && index != last + 1
        {
            return Err(StoreError::damaged("log", last + 1, "it is not there"));
        }
        last = Some(index);
    }
    Ok(())
}

/// The counts as they were written last.
pub(super) fn counts<S: Source>(tables: &Tables<S>) -> Result<Counts, StoreError> {
    get_meta(tables.meta()?, name::COUNTS)?.map_or(Ok(Counts::default()), |bytes| {
        Counts::decode(&bytes).map_err(|error| StoreError::damaged("meta", name::COUNTS, error))
    })
}

impl Snapshot {
    pub(super) fn new(
        transaction: ReadTransaction,
        destination: &DestinationName,
        parsed: Arc<Parsed>,
        bodies: Bodies,
    ) -> Result<Self, StoreError> {
        let tables = Tables::of(transaction);
        let head = Head::load(&tables, destination, &parsed)?;
        Ok(Self { tables, head, parsed, bodies })
    }

    // --- consensus

    /// Log entries of a range, in order, until their bytes exceed `most_bytes` (at least one, if there is one).
    /// Errors: [`StoreError::Damaged`].
    pub fn log(&self, range: std::ops::Range<u64>, most_bytes: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let (from, to) = (range.start.to_be_bytes(), range.end.to_be_bytes());
        let mut entries = Vec::new();
        let mut bytes = 0;
        if range.is_empty() {
            return Ok(entries);
        }
        let found = self.tables.log()?.range::<&[u8]>(from.as_slice()..to.as_slice());
        for found in found.map_err(StoreError::failed("reading the log"))? {
            let (key, value) = found.map_err(StoreError::failed("reading the log"))?;
            bytes += value.value().len();
            if bytes > most_bytes && !entries.is_empty() {
                break;
            }
            entries.push(log_entry(key.value(), value.value())?);
        }
        Ok(entries)
    }

    /// Which entries the log has.
    pub fn log_bounds(&self) -> Result<LogBounds, StoreError> {
        let index = |found: Vec<TableRow>| -> Result<Option<u64>, StoreError> {
            found.first().map(|(key, row)| log_entry(key, row).map(|(index, _)| index)).transpose()
        };
        let first = index(rows(self.tables.log()?, .., false, 1)?)?;
        let last = index(rows(self.tables.log()?, .., true, 1)?)?;
        Ok(LogBounds {
            purged: get_meta(self.tables.meta()?, name::PURGED)?,
            entries: first.zip(last).map(|(first, last)| first..=last),
        })
    }

    /// Consensus's vote.
    pub fn vote(&self) -> Result<Option<Vec<u8>>, StoreError> {
        get_meta(self.tables.meta()?, name::VOTE)
    }

    /// What consensus knew to be committed.
    pub fn committed(&self) -> Result<Option<Vec<u8>>, StoreError> {
        get_meta(self.tables.meta()?, name::COMMITTED)
    }

    /// The log id up to which the log is applied, as consensus writes it.
    pub fn applied_id(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(get_meta(self.tables.meta()?, name::APPLIED)?.map(|row| row.get(8..).unwrap_or_default().to_vec()))
    }

    /// The last membership that was applied, as consensus writes it.
    pub fn membership(&self) -> Result<Option<Vec<u8>>, StoreError> {
        get_meta(self.tables.meta()?, name::MEMBERSHIP)
    }

    /// What was seen of another node (R12).
    pub fn seen(&self, node: &NodeName) -> Result<Option<SeenRow>, StoreError> {
        get(self.tables.seen()?, node.as_str().as_bytes())?
            .map(|bytes| SeenRow::decode(&bytes).map_err(|error| StoreError::damaged("seen", node, error)))
            .transpose()
    }

    // --- the replicated state (more of it is in `View`)

    /// Index up to which the log is applied here.
    pub fn applied(&self) -> u64 {
        self.head.applied
    }

    /// The running digest over apply's changes.
    pub fn state_digest(&self) -> Digest {
        self.head.digest
    }

    /// The held prefix: of everything committed up to here, the bytes are on this node.
    pub fn held(&self) -> Result<Position, StoreError> {
        held(&self.tables)
    }

    /// The last position that has a fate.
    pub fn last_position(&self) -> Result<Position, StoreError> {
        rows(self.tables.positions()?, .., true, 1)?
            .first()
            .map_or(Ok(Position::default()), |(key, _)| read_position(key))
    }

    /// How many transactions are where.
    pub fn counts(&self) -> Result<Counts, StoreError> {
        counts(&self.tables)
    }

    /// A version of the directory that was in force, verified.
    pub fn directory_version(&self, version: u64) -> Result<Option<Arc<Directory>>, StoreError> {
        match self.head.operator {
            Some(operator) if has(self.tables.directories()?, &version.to_be_bytes())? => {
                directory(self.tables.directories()?, version, operator, &self.parsed).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// All versions of the directory that were in force, with the log index from which each was, in order.
    pub fn directory_versions(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let number = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let found = rows(self.tables.directories()?, .., false, usize::MAX)?;
        Ok(found.iter().map(|(version, row)| (number(version), number(row))).collect())
    }

    /// Rows of transactions with this id, by sender: usually one.
    pub fn rows_of(&self, transaction: &TransactionId) -> Result<Vec<Row>, StoreError> {
        self.rows_beginning(&transaction.to_bytes(), usize::MAX)
    }

    /// At most `most` rows of transactions whose id begins with these bytes, by id.
    pub fn rows_beginning(&self, prefix: &[u8], most: usize) -> Result<Vec<Row>, StoreError> {
        beginning(self.tables.fates()?, prefix, false, most)?.iter().map(|(key, row)| read_row(key, row)).collect()
    }

    /// At most `most` rows with a fate after a position and up to `through`, in order, committed and rejected alike.
    pub fn rows_after(&self, after: Position, through: Position, most: usize) -> Result<Vec<Row>, StoreError> {
        let from = Position { number: after.number.saturating_add(1), ..after };
        if from > through {
            return Ok(Vec::new());
        }
        let range = position_key(from)..=position_key(through);
        rows(self.tables.positions()?, range, false, most)?
            .iter()
            .map(|(_, key)| named_row(&self.tables, key))
            .collect()
    }

    /// The first of the last `count` committed rows up to `through`; none when nothing is committed there.
    pub fn first_of_last(&self, through: Position, count: u64) -> Result<Option<Row>, StoreError> {
        ranks::first_of_last(&self.tables, through, count)
    }

    /// The position after which everything has its fate at this group time or later: a cursor for "since".
    pub fn before(&self, time: Time) -> Result<Position, StoreError> {
        // Group time is monotonic along the log, so the first row that is late enough is found by halving.
        let (mut low, mut high) = (0, self.last_position()?.index.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let from = position_key(Position { index: middle, number: 0 });
            match rows(self.tables.positions()?, from.., false, 1)?.first() {
                Some((_, key)) if named_row(&self.tables, key)?.decided < time => low = middle + 1,
                _ => high = middle,
            }
        }
        let end = position_key(Position { index: low, number: 0 });
        let last = rows(self.tables.positions()?, ..end, true, 1)?;
        last.first().map_or(Ok(Position::default()), |(key, _)| read_position(key))
    }

    /// At most `most` committed rows of an ordering key after a position, in order.
    pub fn rows_of_key(&self, tag: &KeyTag, after: Position, most: usize) -> Result<Vec<Row>, StoreError> {
        let from = key_key(tag, Position { number: after.number.saturating_add(1), ..after });
        let end = key_key(tag, Position { index: u64::MAX, number: u32::MAX });
        rows(self.tables.keys()?, from..=end, false, most)?
            .iter()
            .map(|(_, key)| named_row(&self.tables, key))
            .collect()
    }

    /// The latest committed row of an ordering key up to a position.
    pub fn latest_of_key(&self, tag: &KeyTag, through: Position) -> Result<Option<Row>, StoreError> {
        let range = key_key(tag, Position::default())..=key_key(tag, through);
        rows(self.tables.keys()?, range, true, 1)?.first().map(|(_, key)| named_row(&self.tables, key)).transpose()
    }

    // --- bodies and staging

    /// A body, if it is here. Small ones are read at once; large ones as they are wanted.
    pub fn body(&self, digest: &Digest, index: u32) -> Result<Option<Body>, StoreError> {
        let Some(row) = body_row(&self.tables, digest, index)? else { return Ok(None) };
        let reader = match row.place {
            Place::Inline(bytes) => BodyReader::Inline(bytes),
            Place::File(number) => self.bodies.open_body(digest, index, number)?,
        };
        Ok(Some(Body { length: row.length, digest: row.digest, wrapped_key: row.wrapped_key, reader }))
    }

    /// Whether a body is here.
    pub fn has_body(&self, digest: &Digest, index: u32) -> Result<bool, StoreError> {
        has(self.tables.bodies()?, &body_key(digest, index))
    }

    /// At most `most` committed rows after a position whose bodies are missing here, in order.
    pub fn missing(&self, after: Position, most: usize) -> Result<Vec<Row>, StoreError> {
        let from = position_key(Position { number: after.number.saturating_add(1), ..after });
        let mut found = Vec::new();
        for (key, _) in rows(self.tables.missing()?, from.., false, most)? {
            if let Some(transaction) = get(self.tables.positions()?, &key)? {
                found.push(named_row(&self.tables, &transaction)?);
            }
        }
        Ok(found)
    }

    /// A staged parcel with undecided transactions.
    pub fn staged(&self, digest: &Digest) -> Result<Option<StagedRow>, StoreError> {
        staged_row(&self.tables, digest)
    }

    /// Whether a parcel is staged and has undecided transactions.
    pub fn is_staged(&self, digest: &Digest) -> Result<bool, StoreError> {
        has(self.tables.staged()?, &digest.0)
    }

    /// At most `most` staged parcels after this D, by D.
    pub fn staged_after(&self, after: Option<&Digest>, most: usize) -> Result<Vec<StagedRow>, StoreError> {
        let mut from = after.map(|digest| digest.0.to_vec()).unwrap_or_default();
        from.extend(after.map(|_| 0));
        rows(self.tables.staged()?, from.., false, most)?
            .into_iter()
            .map(|(key, row)| {
                StagedRow::decode(&row)
                    .map_err(|error| StoreError::damaged("staged", data_encoding::HEXLOWER.encode(&key), error))
            })
            .collect()
    }

    /// The staged parcels in which a transaction is undecided: D and its number there.
    pub fn undecided(
        &self,
        sender: &SenderName,
        transaction: &TransactionId,
    ) -> Result<Vec<(Digest, u32)>, StoreError> {
        beginning(self.tables.undecided()?, &transaction_key(sender, transaction), false, usize::MAX)?
            .iter()
            .map(|(key, _)| read_undecided_key(key).map(|(_, _, digest, index)| (digest, index)))
            .collect()
    }

    /// How many transactions of a sender are staged and undecided, counted up to `most`.
    pub fn undecided_of(&self, sender: &SenderName, most: usize) -> Result<usize, StoreError> {
        let prefix = [sender.as_str().as_bytes(), &[0]].concat();
        let after = [sender.as_str().as_bytes(), &[1]].concat();
        let found = self.tables.undecided()?.range::<&[u8]>(prefix.as_slice()..after.as_slice());
        let mut count = 0;
        for row in found.map_err(StoreError::failed("reading rows"))?.take(most) {
            row.map_err(StoreError::failed("reading rows"))?;
            count += 1;
        }
        Ok(count)
    }

    // --- collecting

    /// How far a partition was collected; `None` for one that never was.
    pub fn offset(&self, partition: i32) -> Result<Option<Mark>, StoreError> {
        get(self.tables.offsets()?, &partition.to_be_bytes())?
            .map(|bytes| decode_mark(&bytes).map_err(|error| StoreError::damaged("offsets", partition, error)))
            .transpose()
    }

    /// The deferred records, by partition and offset.
    pub fn deferred(&self) -> Result<Vec<(Address, DeferredRow)>, StoreError> {
        rows(self.tables.deferred()?, .., false, usize::MAX)?
            .into_iter()
            .map(|(key, row)| {
                let damaged =
                    |cause: String| StoreError::damaged("deferred", data_encoding::HEXLOWER.encode(&key), cause);
                let at = read_address(&key).ok_or_else(|| damaged("no address".to_owned()))?;
                Ok((at, DeferredRow::decode(&row).map_err(|error| damaged(error.to_string()))?))
            })
            .collect()
    }

    /// This node's signed refusal of a parcel.
    pub fn refusal(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(get(self.tables.refusals()?, &digest.0)?.map(Bytes::from))
    }

    // --- the node

    /// The alarms that stand, by name.
    pub fn alarms(&self) -> Result<Vec<(String, AlarmRow)>, StoreError> {
        rows(self.tables.alarms()?, .., false, usize::MAX)?
            .into_iter()
            .map(|(key, row)| {
                let name = String::from_utf8_lossy(&key).into_owned();
                let row = AlarmRow::decode(&row).map_err(|error| StoreError::damaged("alarms", &name, error))?;
                Ok((name, row))
            })
            .collect()
    }

    /// A small fact that the node noted.
    pub fn note(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(get(self.tables.notes()?, name.as_bytes())?.map(Bytes::from))
    }

    fn view(&self) -> StateView<'_, Reading> {
        StateView { tables: &self.tables, head: &self.head }
    }
}

impl View for Snapshot {
    type Error = StoreError;

    fn destination(&self) -> &DestinationName {
        &self.head.destination
    }

    fn group_time(&self) -> Time {
        self.head.group_time
    }

    fn directory(&self) -> Option<&Arc<Directory>> {
        self.head.directory.as_ref()
    }

    fn operator(&self) -> Option<VerifyingKeyBytes> {
        self.head.operator
    }

    fn transaction(&self, sender: &SenderName, transaction: TransactionId) -> Result<Option<Row>, StoreError> {
        self.view().transaction(sender, transaction)
    }

    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, StoreError> {
        self.view().claim(sender, tag)
    }

    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, StoreError> {
        self.view().key_version(tag)
    }
}
