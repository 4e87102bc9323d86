//! The replicated state as rows: what `core::decide::apply` reads and where its changes are put, on a write transaction or
//! on a snapshot.
//!
//! Owns the rows of consensus. Must not make a fate (that is `core::decide`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use redb::ReadableTable;

use super::rows::{guard, unguard};
use super::tables::{
    Source, Tables, Writable, Writing, beginning, fate_key, fate_key_of, get, key_key, position_key, put,
    read_position, rows, transaction_key,
};
use crate::core::decide::{Changes, Claim, Row, View};
use crate::core::directory::Directory;
use crate::core::id::{
    DestinationName, Digest, IdempotencyTag, KeyTag, Position, SenderName, Time, TransactionId, VerifyingKeyBytes,
};
use crate::core::sign::PublicKey;
use crate::store::StoreError;

/// Names of rows in `meta`.
pub(super) mod name {
    pub const FORMAT: &str = "format";
    pub const DESTINATION: &str = "destination";
    pub const INCARNATION: &str = "incarnation";
    pub const VOTE: &str = "vote";
    pub const COMMITTED: &str = "committed";
    pub const PURGED: &str = "purged";
    pub const MEMBERSHIP: &str = "membership";
    pub const APPLIED: &str = "applied";
    pub const GROUP_TIME: &str = "group-time";
    pub const STATE_DIGEST: &str = "state-digest";
    pub const OPERATOR: &str = "operator";
    pub const DIRECTORY: &str = "directory";
    pub const COUNTS: &str = "counts";
}

/// A checked row of `meta`.
pub(super) fn get_meta<T: ReadableTable<&'static [u8], &'static [u8]>>(
    meta: &T,
    name: &'static str,
) -> Result<Option<Vec<u8>>, StoreError> {
    match get(meta, name.as_bytes())? {
        None => Ok(None),
        Some(row) => match unguard(name.as_bytes(), &row) {
            Some(value) => Ok(Some(value.to_vec())),
            None => Err(StoreError::damaged("meta", name, "its checksum differs")),
        },
    }
}

/// A checked row of `meta` of fixed length.
pub(super) fn get_fixed<const N: usize, T: ReadableTable<&'static [u8], &'static [u8]>>(
    meta: &T,
    name: &'static str,
) -> Result<Option<[u8; N]>, StoreError> {
    get_meta(meta, name)?
        .map(|value| value.try_into().map_err(|_| StoreError::damaged("meta", name, format!("not {N} bytes"))))
        .transpose()
}

/// Writes a row of `meta`.
pub(super) fn put_meta(meta: &mut Writable<'_>, name: &'static str, value: &[u8]) -> Result<(), StoreError> {
    put(meta, name.as_bytes(), &guard(name.as_bytes(), value))
}

/// What of the replicated state is small and read by every entry.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub destination: DestinationName,
    pub applied: u64,
    pub group_time: Time,
    pub digest: Digest,
    pub operator: Option<VerifyingKeyBytes>,
    pub directory: Option<Arc<Directory>>,
}

/// Directories that were parsed already, by version.
pub(super) type Parsed = Mutex<BTreeMap<u64, Arc<Directory>>>;

impl Head {
    /// Reads it from a transaction.
    pub fn load<S: Source>(
        tables: &Tables<S>,
        destination: &DestinationName,
        parsed: &Parsed,
    ) -> Result<Self, StoreError> {
        let meta = tables.meta()?;
        let number = |bytes: Option<[u8; 8]>| bytes.map_or(0, u64::from_be_bytes);
        let operator = get_fixed(meta, name::OPERATOR)?.map(VerifyingKeyBytes);
        let directory = match (get_fixed(meta, name::DIRECTORY)?.map(u64::from_be_bytes), operator) {
            (Some(version), Some(operator)) => Some(directory(tables.directories()?, version, operator, parsed)?),
            _ => None,
        };
        Ok(Self {
            destination: destination.clone(),
            applied: applied_index(meta)?,
            group_time: Time(number(get_fixed(meta, name::GROUP_TIME)?)),
            digest: Digest(get_fixed(meta, name::STATE_DIGEST)?.unwrap_or_default()),
            operator,
            directory,
        })
    }

    /// Puts the changes of an entry in place, all but what they mean for staged parcels and bodies.
    pub fn put(
        &mut self,
        tables: &mut Tables<Writing<'_>>,
        changes: &Changes,
        parsed: &Parsed,
    ) -> Result<(), StoreError> {
        for change in &changes.directories {
            if self.operator.is_none() {
                put_meta(tables.meta_mut()?, name::OPERATOR, &change.operator.0)?;
                self.operator = Some(change.operator);
            }
            let version = change.directory.version;
            let mut row = changes.index.to_be_bytes().to_vec();
            row.extend_from_slice(change.directory.bytes());
            put(tables.directories_mut()?, &version.to_be_bytes(), &row)?;
            put_meta(tables.meta_mut()?, name::DIRECTORY, &version.to_be_bytes())?;
            parsed.lock().unwrap_or_else(PoisonError::into_inner).insert(version, change.directory.clone());
            self.directory = Some(change.directory.clone());
        }
        let encoded: Vec<Vec<u8>> = changes.rows.iter().map(Row::encode).collect();
        for (row, encoded) in changes.rows.iter().zip(&encoded) {
            let key = transaction_key(&row.sender, &row.transaction);
            put(tables.fates_mut()?, &fate_key(&row.sender, &row.transaction), encoded)?;
            put(tables.positions_mut()?, &position_key(row.position), &key)?;
            if let (Some(tag), true) = (&row.key_tag, row.is_committed()) {
                put(tables.keys_mut()?, &key_key(tag, row.position), &key)?;
            }
        }
        for (sender, tag, claim) in &changes.claims {
            put(tables.idempotency_mut()?, &claim_key(sender, tag), &claim.encode())?;
        }
        self.digest = changes.state_digest_with(&self.digest, &encoded);
        put_meta(tables.meta_mut()?, name::STATE_DIGEST, &self.digest.0)?;
        if self.group_time != changes.group_time {
            self.group_time = changes.group_time;
            put_meta(tables.meta_mut()?, name::GROUP_TIME, &self.group_time.0.to_be_bytes())?;
        }
        Ok(())
    }
}

/// The index up to which the log is applied; 0 before the first entry.
pub(super) fn applied_index<T: ReadableTable<&'static [u8], &'static [u8]>>(meta: &T) -> Result<u64, StoreError> {
    let row = get_meta(meta, name::APPLIED)?;
    Ok(row.as_deref().and_then(|row| row.first_chunk::<8>()).map_or(0, |index| u64::from_be_bytes(*index)))
}

/// Key of `idempotency`.
fn claim_key(sender: &SenderName, tag: &IdempotencyTag) -> Vec<u8> {
    [sender.as_str().as_bytes(), &[0], &tag.0].concat()
}

/// A version of the directory, verified again with the operator's key that the group pinned.
pub(super) fn directory<T: ReadableTable<&'static [u8], &'static [u8]>>(
    directories: &T,
    version: u64,
    operator: VerifyingKeyBytes,
    parsed: &Parsed,
) -> Result<Arc<Directory>, StoreError> {
    if let Some(directory) = parsed.lock().unwrap_or_else(PoisonError::into_inner).get(&version) {
        return Ok(directory.clone());
    }
    let damaged = |cause: String| StoreError::damaged("directories", version, cause);
    let row = get(directories, &version.to_be_bytes())?.ok_or_else(|| damaged("it is not there".to_owned()))?;
    let bytes = row.get(8..).ok_or_else(|| damaged("it is too short".to_owned()))?;
    let key = PublicKey::check(&operator).map_err(|error| damaged(error.to_string()))?;
    let directory = Arc::new(Directory::recorded(bytes, &key, version).map_err(|error| damaged(error.to_string()))?);
    parsed.lock().unwrap_or_else(PoisonError::into_inner).insert(version, directory.clone());
    Ok(directory)
}

/// The row of a decided transaction, by its key in `fates`.
pub(super) fn row<S: Source>(tables: &Tables<S>, key: &[u8]) -> Result<Option<Row>, StoreError> {
    get(tables.fates()?, key)?.map(|bytes| read_row(key, &bytes)).transpose()
}

/// The row that a position, or a key at one, names as (sender, transaction). Without it the store is damaged.
pub(super) fn named_row<S: Source>(tables: &Tables<S>, key: &[u8]) -> Result<Row, StoreError> {
    let lost = || StoreError::damaged("fates", data_encoding::HEXLOWER.encode(key), "it is not there");
    row(tables, &fate_key_of(key)?)?.ok_or_else(lost)
}

/// Reads the bytes of such a row.
pub(super) fn read_row(key: &[u8], bytes: &[u8]) -> Result<Row, StoreError> {
    Row::decode(bytes).map_err(|error| StoreError::damaged("fates", data_encoding::HEXLOWER.encode(key), error))
}

/// The held prefix: the last position before the first one whose body is missing here.
pub(super) fn held<S: Source>(tables: &Tables<S>) -> Result<Position, StoreError> {
    let last = match rows(tables.missing()?, .., false, 1)?.pop() {
        Some((first, _)) => rows(tables.positions()?, ..first, true, 1)?,
        None => rows(tables.positions()?, .., true, 1)?,
    };
    last.first().map_or(Ok(Position::default()), |(key, _)| read_position(key))
}

/// Tables and head together are what an entry is applied to.
pub(super) struct StateView<'a, S: Source> {
    pub tables: &'a Tables<S>,
    pub head: &'a Head,
}

impl<S: Source> View for StateView<'_, S> {
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
        row(self.tables, &fate_key(sender, &transaction))
    }

    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, StoreError> {
        get(self.tables.idempotency()?, &claim_key(sender, &tag))?
            .map(|bytes| Claim::decode(&bytes).map_err(|error| StoreError::damaged("idempotency", tag, error)))
            .transpose()
    }

    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, StoreError> {
        let last = beginning(self.tables.keys()?, &tag.0, true, 1)?;
        last.first().map(|(key, _)| read_position(key.get(16..).unwrap_or_default())).transpose()
    }
}
