//! What `apply` reads and what it gives back.
//!
//! Owns the two shapes between the rules and whoever keeps the state. Must not know how it is kept.

use std::sync::Arc;

use super::rows::{Claim, Row, put_position};
use crate::core::directory::Directory;
use crate::core::id::{
    DestinationName, Digest, Epoch, IdempotencyTag, KeyTag, ParcelId, Position, SenderName, Time, TransactionId,
    VerifyingKeyBytes,
};
use crate::core::wire::{Writer, label};

/// The replicated state of a group as it stands before an entry. Implemented by the store and by the tests' model.
pub trait View {
    /// Why a look-up can fail: the store's own errors. They are no verdict: the entry is applied again or the node stops.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The group's destination.
    fn destination(&self) -> &DestinationName;

    /// Group time: that of the last entry; `Time(0)` until the first entry that has one.
    fn group_time(&self) -> Time;

    /// The directory in force; `None` before the founding entry.
    fn directory(&self) -> Option<&Arc<Directory>>;

    /// The operator's key that the first directory pinned.
    fn operator(&self) -> Option<VerifyingKeyBytes>;

    /// The row of a decided transaction.
    fn transaction(&self, sender: &SenderName, transaction: TransactionId) -> Result<Option<Row>, Self::Error>;

    /// The last claim of an idempotency key, even when its time is over.
    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, Self::Error>;

    /// The last position that was committed under an ordering key.
    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, Self::Error>;
}

/// A directory that took effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryChange {
    /// The operator's key that it was verified with; to be kept from the first one on.
    pub operator: VerifyingKeyBytes,
    /// The directory; its bytes are to be kept, all versions of them.
    pub directory: Arc<Directory>,
}

/// What an entry does to the state, and what those who wait for it learn. The first five fields are state: a store puts
/// them in place in one step together with `index`. The last two are news of this entry only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes {
    /// The entry's index.
    pub index: u64,
    /// Group time from here on.
    pub group_time: Time,
    /// Directories that took effect, in order; the last one is in force from here on.
    pub directories: Vec<DirectoryChange>,
    /// New rows, in the order of their positions. None of their (sender, transaction id) had a row.
    pub rows: Vec<Row>,
    /// Ordering keys whose last position moved, in order; a key may appear more than once, the last counts.
    pub keys: Vec<(KeyTag, Position)>,
    /// New claims of idempotency keys, in order; a key may appear more than once, the last counts.
    pub claims: Vec<(SenderName, IdempotencyTag, Claim)>,
    /// What became of every transaction that the entry named, in its order. No state.
    pub outcomes: Vec<Outcome>,
    /// Directories of the entry that changed nothing, and why. No state.
    pub directories_refused: Vec<String>,
}

/// What became of one transaction that an entry named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The parcel that the commit named.
    pub parcel: ParcelId,
    /// D of it.
    pub digest: Digest,
    /// The start of the sender's client that sealed it.
    pub epoch: Epoch,
    /// The latest deadline that its header allows.
    pub expiry: Time,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The transaction's number in that parcel.
    pub index: u32,
    /// Its sender.
    pub sender: SenderName,
    /// Its id.
    pub transaction: TransactionId,
    /// What became of it.
    pub result: Applied,
}

/// What applying did with one transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It got the fate of the new row.
    Decided,
    /// It had a fate; nothing changed (R6).
    Repeat,
    /// Its id has a fate with another payload; nothing changed, and its holder learns rejected(id-reuse) (R6).
    IdReuse,
    /// Group time had passed its deadline; nothing changed, it is expired (R7).
    Late,
    /// Its predecessor is not decided; nothing changed, it is to be proposed again (R5).
    TooEarly,
    /// The commit's reporters are no quorum; nothing changed, it is to be proposed again (R10).
    Void,
}

impl Changes {
    /// The running digest over apply's changes after this entry: BLAKE3(L("state"), digest before, index, group time, and
    /// the state that changed, each list behind its u32 length) as docs/wire-format.md says. Starts with 32 zeros.
    pub fn state_digest(&self, before: &Digest) -> Digest {
        let rows: Vec<Vec<u8>> = self.rows.iter().map(Row::encode).collect();
        self.state_digest_with(before, &rows)
    }

    /// The same for who has the bytes of all rows, in their order, already.
    pub fn state_digest_with(&self, before: &Digest, rows: &[Vec<u8>]) -> Digest {
        let mut to = Writer::with_capacity(64 + self.rows.len() * 320);
        to.put(label::STATE).put(&before.0).u64(self.index).u64(self.group_time.0);
        to.u32(self.directories.len() as u32);
        for change in &self.directories {
            to.put(&change.operator.0).u64(change.directory.version).long_bytes(change.directory.bytes());
        }
        to.u32(rows.len() as u32);
        for row in rows {
            to.short_bytes(row);
        }
        to.u32(self.keys.len() as u32);
        for (tag, position) in &self.keys {
            to.put(&tag.0);
            put_position(&mut to, *position);
        }
        to.u32(self.claims.len() as u32);
        for (sender, tag, claim) in &self.claims {
            to.name(sender.as_str()).put(&tag.0).short_bytes(&claim.encode());
        }
        Digest(*blake3::hash(to.as_slice()).as_bytes())
    }
}
