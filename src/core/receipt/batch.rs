//! Receipts: statements in batches, one signature over the root of their tree, and for each its path; a record that has the
//! whole batch needs no paths.
//!
//! Owns signing and verifying batches. Must not count them.

use std::collections::BTreeMap;

use super::notice::{Kind, NoticeError, Verified, begin, notice_key, voter};
use super::statement::Statement;
use super::{Directories, NOTICE_VERSION};
use crate::core::id::{DestinationTag, Digest, NodeName, SenderName};
use crate::core::limits;
use crate::core::sign::{SIGNATURE_BYTES, SecretKey};
use crate::core::split::merkle;
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// One record for the notices topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoticeRecord {
    /// The record's key: see [`notice_key`].
    pub key: [u8; 16],
    /// The record's value.
    pub value: Vec<u8>,
}

/// Longest statement, in bytes: its fields with the longest sender's name and a duplicate's first.
const STATEMENT_BYTES: usize = 256;
/// Longest path: the depth of a tree over [`limits::RECEIPTS_PER_BATCH`] leaves.
const PATH_HASHES: usize = 11;
/// A sender with so many statements of a batch has a batch of its own: a signature costs less than their paths.
const OWN_BATCH: usize = 8;

/// What a batch's signature is over, and the signature.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Head {
    destination: DestinationTag,
    node: NodeName,
    directory: u64,
    count: u16,
    root: Digest,
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(128);
        to.put(&self.destination.0).name(self.node.as_str()).u64(self.directory).u16(self.count).put(&self.root.0);
        to.finish()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Receipt {
    index: u16,
    statement: Statement,
    leaf: Digest,
    path: Vec<Digest>,
}

/// Receipts of one node for one sender, as a record carries them: unverified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipts {
    head: Head,
    signature: [u8; SIGNATURE_BYTES],
    sender: SenderName,
    receipts: Vec<Receipt>,
}

/// Signs statements of one group: one signature for up to [`limits::RECEIPTS_PER_BATCH`] of them, and one more for each sender
/// with many. Gives the records to publish, at least one for each sender; none for no statements. `directory` is the version of the directory in force
/// here, which lists `key` as this node's signing key.
pub fn sign_receipts(
    key: &SecretKey,
    node: &NodeName,
    destination: DestinationTag,
    directory: u64,
    statements: &[Statement],
) -> Vec<NoticeRecord> {
    let batches = statements.chunks(limits::RECEIPTS_PER_BATCH);
    batches.flat_map(|batch| sign_batch(key, node, destination, directory, batch)).collect()
}

fn sign_batch(
    key: &SecretKey,
    node: &NodeName,
    destination: DestinationTag,
    directory: u64,
    statements: &[Statement],
) -> Vec<NoticeRecord> {
    let mut numbers: BTreeMap<&SenderName, usize> = BTreeMap::new();
    for statement in statements {
        *numbers.entry(&statement.sender).or_default() += 1;
    }
    let of_its_own = |sender: &SenderName| numbers.get(sender).is_some_and(|number| *number >= OWN_BATCH);
    let (own, shared): (Vec<&Statement>, Vec<&Statement>) =
        statements.iter().partition(|statement| of_its_own(&statement.sender));
    let mut batches: BTreeMap<&SenderName, Vec<&Statement>> = BTreeMap::new();
    for statement in own {
        batches.entry(&statement.sender).or_default().push(statement);
    }
    let mut records: BTreeMap<&SenderName, NoticeRecord> = BTreeMap::new();
    for batch in batches.into_values().chain([shared]) {
        let encoded: Vec<Vec<u8>> = batch.iter().map(|statement| statement.encode()).collect();
        let leaves: Vec<Digest> = encoded.iter().map(|bytes| Statement::leaf(bytes)).collect();
        let whole = batch.first().is_some_and(|first| batch.iter().all(|other| other.sender == first.sender));
        let (root, paths) = match whole {
            true => (merkle::root(&leaves), Vec::new()),
            false => match merkle::proofs(&leaves) {
                Some((root, paths)) => (Some(root), paths),
                None => continue,
            },
        };
        let Some(root) = root else { continue };
        // At most RECEIPTS_PER_BATCH.
        let head = Head { destination, node: node.clone(), directory, count: batch.len() as u16, root }.encode();
        let signature = key.sign(label::RECEIPTS, &head);
        let mut by_sender: BTreeMap<&SenderName, Vec<usize>> = BTreeMap::new();
        for (index, statement) in batch.iter().enumerate() {
            by_sender.entry(&statement.sender).or_default().push(index);
        }
        for (sender, indexes) in by_sender {
            let mut to = begin(Kind::Receipts);
            to.put(&head).put(&signature).u16(indexes.len() as u16);
            for (index, bytes) in indexes.into_iter().filter_map(|index| Some((index, encoded.get(index)?))) {
                let path = paths.get(index).map(Vec::as_slice).unwrap_or_default();
                to.u16(index as u16).short_bytes(bytes).u8(path.len() as u8);
                path.iter().for_each(|hash| {
                    to.put(&hash.0);
                });
            }
            records.insert(sender, NoticeRecord { key: notice_key(sender), value: to.finish() });
        }
    }
    records.into_values().collect()
}

impl Receipts {
    /// Whose transactions it is about.
    pub fn sender(&self) -> &SenderName {
        &self.sender
    }

    /// Which group says it.
    pub fn destination(&self) -> DestinationTag {
        self.head.destination
    }

    /// The node that is named as the signer: unverified.
    pub fn claimed_node(&self) -> &NodeName {
        &self.head.node
    }

    /// The version of the directory under which it is said to be signed: unverified.
    pub fn claimed_directory(&self) -> u64 {
        self.head.directory
    }

    /// What is said, unverified: for tools that show records. Nothing may be counted before [`Receipts::verify`].
    pub fn claimed(&self) -> impl Iterator<Item = &Statement> {
        self.receipts.iter().map(|receipt| &receipt.statement)
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let head = Head {
            destination: DestinationTag(from.array("receipts: destination tag")?),
            node: from.name("receipts: node")?,
            directory: from.u64("receipts: directory version")?,
            count: from.u16("receipts: batch size")?,
            root: Digest(from.array("receipts: root")?),
        };
        in_range(head.count.into(), 1, limits::RECEIPTS_PER_BATCH as u64, "receipts: batch size")?;
        let signature = from.array("receipts: signature")?;
        let number = from.u16("receipts: number")?;
        in_range(number.into(), 1, head.count.into(), "receipts: number")?;
        let mut receipts: Vec<Receipt> = Vec::new();
        for _ in 0..number {
            let index = from.u16("receipt: index")?;
            let lowest = receipts.last().map_or(0, |last| u64::from(last.index) + 1);
            in_range(index.into(), lowest, u64::from(head.count) - 1, "receipt: index")?;
            let bytes = from.short_bytes(STATEMENT_BYTES, "receipt: statement")?;
            let (statement, leaf) = (Statement::decode(bytes)?, Statement::leaf(bytes));
            let length = from.u8("receipt: path length")?;
            in_range(length.into(), 0, PATH_HASHES as u64, "receipt: path length")?;
            let path = (0..length).map(|_| from.array("receipt: path").map(Digest)).collect::<Result<_, _>>()?;
            receipts.push(Receipt { index, statement, leaf, path });
        }
        let sender = receipts.first().map(|first| first.statement.sender.clone());
        match sender {
            Some(sender) if receipts.iter().all(|receipt| receipt.statement.sender == sender) => {
                Ok(Self { head, signature, sender, receipts })
            }
            _ => Err(WireError::Invalid { field: "receipts: sender", expected: "one sender in all statements" }),
        }
    }

    /// Whether all of the batch is here, without paths: the tree is built instead. Indexes ascend, so that as many as the batch
    /// has are all of it.
    fn is_whole(&self) -> bool {
        self.receipts.len() == usize::from(self.head.count)
            && self.receipts.iter().all(|receipt| receipt.path.is_empty())
    }

    /// Verifies signature and paths with the node's key of the directory version that the batch names. Nothing is taken
    /// when anything fails. Errors: [`NoticeError::UnknownDirectory`] (try again when it is known),
    /// [`NoticeError::UnknownNode`], [`NoticeError::Signature`], [`NoticeError::Path`].
    pub fn verify(self, directories: &Directories) -> Result<Vec<Verified<Statement>>, NoticeError> {
        let Head { destination, node, directory, count, root } = self.head.clone();
        let key = voter(directories, directory, destination, &node)?;
        key.verify(label::RECEIPTS, &self.head.encode(), &self.signature)
            .map_err(|_| NoticeError::Signature { node: node.clone() })?;
        if self.is_whole() {
            let leaves: Vec<Digest> = self.receipts.iter().map(|receipt| receipt.leaf).collect();
            if merkle::root(&leaves) != Some(root) {
                return Err(NoticeError::Path { node, index: 0 });
            }
        } else {
            for Receipt { index, leaf, path, .. } in &self.receipts {
                if merkle::climb(*leaf, (*index).into(), count.into(), path) != Some(root) {
                    return Err(NoticeError::Path { node, index: *index });
                }
            }
        }
        let verified = |statement| Verified { node: node.clone(), destination, directory, said: statement };
        Ok(self.receipts.into_iter().map(|receipt| verified(receipt.statement)).collect())
    }
}

/// Bytes that receipts of a record may have: the head has one name.
const ROOM: usize = limits::NOTICE_BYTES - 512;

const _: () = assert!(1 << PATH_HASHES == limits::RECEIPTS_PER_BATCH && NOTICE_VERSION == 1);
// What is cut to records by its batch alone always fits: all of a batch without paths, few of a sender with them.
const _: () = assert!(limits::RECEIPTS_PER_BATCH * (STATEMENT_BYTES + 5) < ROOM);
const _: () = assert!(OWN_BATCH * (STATEMENT_BYTES + 5 + PATH_HASHES * 32) < ROOM);
