//! Records of the notices topic: their shape, refusals, missing notices, new directories.
//!
//! Owns reading any notice and verifying the signed ones. Must not count them.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::batch::{NoticeRecord, Receipts};
use super::{Directories, NOTICE_VERSION};
use crate::core::id::{DestinationTag, Digest, Epoch, NodeName, ParcelId, RefusalReason, SenderName};
use crate::core::limits;
use crate::core::sign::{PublicKey, SIGNATURE_BYTES, SecretKey};
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// How every notice begins.
pub const NOTICE_MAGIC: [u8; 4] = *b"SCNT";

/// Why a notice is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoticeError {
    /// The bytes are no notice of this version.
    #[error(transparent)]
    Field(#[from] WireError),
    /// It was signed under a directory version that is not known here.
    #[error("signed under directory version {version}, which is not known here: get the newest directory")]
    UnknownDirectory {
        /// The version.
        version: u64,
    },
    /// Directory versions know no such destination, or its group has no such node.
    #[error("{node} is no node of destination {destination} in directory version {version}")]
    UnknownNode {
        /// Who is said to have signed.
        node: NodeName,
        /// For which group.
        destination: DestinationTag,
        /// The version.
        version: u64,
    },
    /// The node did not sign this.
    #[error("the signature is not that of {node}")]
    Signature {
        /// Who is said to have signed.
        node: NodeName,
    },
    /// A receipt does not belong to the batch that was signed.
    #[error("receipt {index} does not belong to the batch that {node} signed")]
    Path {
        /// Who signed the batch.
        node: NodeName,
        /// The receipt's index.
        index: u16,
    },
}

impl NoticeError {
    /// Whether the same bytes can be believed later: with a later directory or a later version of the program.
    pub fn retryable(&self) -> bool {
        match self {
            Self::UnknownDirectory { .. } => true,
            Self::Field(error) => error.retryable(),
            Self::UnknownNode { .. } | Self::Signature { .. } | Self::Path { .. } => false,
        }
    }
}

/// A record of the notices topic, read and not verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A node says what became of transactions of one sender.
    Receipts(Receipts),
    /// A node refuses a parcel.
    Refusal(Signed<Refusal>),
    /// A node lacks stripes of a parcel.
    Missing(Signed<Missing>),
    /// A directory file, signature included: to be verified with the operator's key.
    Directory(Bytes),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Receipts = 1,
    Refusal = 2,
    Missing = 3,
    Directory = 4,
}

impl Notice {
    /// Reads a record's value; at most [`limits::NOTICE_BYTES`]. Errors: [`WireError`] with the field;
    /// [`WireError::Unknown`] for a version or kind that this code does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        in_range(bytes.len() as u64, 0, limits::NOTICE_BYTES as u64, "notice")?;
        let mut from = Reader::new(bytes);
        if from.array("notice: magic")? != NOTICE_MAGIC {
            return Err(WireError::Invalid { field: "notice: magic", expected: "SCNT" });
        }
        match from.u8("notice: version")? {
            NOTICE_VERSION => {}
            other => return Err(WireError::Unknown { field: "notice: version", value: other.into() }),
        }
        let notice = match from.u8("notice: kind")? {
            kind if kind == Kind::Receipts as u8 => Self::Receipts(Receipts::read(&mut from)?),
            kind if kind == Kind::Refusal as u8 => Self::Refusal(read(&mut from)?),
            kind if kind == Kind::Missing as u8 => Self::Missing(read(&mut from)?),
            kind if kind == Kind::Directory as u8 => {
                Self::Directory(Bytes::copy_from_slice(from.long_bytes(limits::DIRECTORY_BYTES, "notice: directory")?))
            }
            other => return Err(WireError::Unknown { field: "notice: kind", value: other.into() }),
        };
        from.finish("notice")?;
        Ok(notice)
    }

    /// A record that brings a directory to everybody: its key is 16 zeros.
    pub fn directory(bytes: &[u8]) -> NoticeRecord {
        let mut to = begin(Kind::Directory);
        to.long_bytes(bytes);
        NoticeRecord { key: [0; 16], value: to.finish() }
    }
}

/// The key of records for one sender: the first 16 bytes of BLAKE3(L("notice"), u8 name length, name). Clients pass over
/// records with other keys, but for 16 zeros, which are for everybody; it is a hint, and nothing is believed for it.
pub fn notice_key(sender: &SenderName) -> [u8; 16] {
    let mut to = Writer::with_capacity(96);
    to.put(label::NOTICE).name(sender.as_str());
    let mut key = [0; 16];
    blake3::Hasher::new().update(to.as_slice()).finalize_xof().fill(&mut key);
    key
}

pub(super) fn begin(kind: Kind) -> Writer {
    let mut to = Writer::with_capacity(512);
    to.put(&NOTICE_MAGIC).u8(NOTICE_VERSION).u8(kind as u8);
    to
}

/// The signing key of a node of this group in this directory version.
pub(super) fn voter<'a>(
    directories: &'a Directories,
    version: u64,
    destination: DestinationTag,
    node: &NodeName,
) -> Result<&'a PublicKey, NoticeError> {
    let directory = directories.get(&version).ok_or(NoticeError::UnknownDirectory { version })?;
    let entry = directory.destination_by_tag(&destination).filter(|entry| entry.has_node(node));
    let key = entry.and_then(|_| directory.nodes.get(node)).map(|entry| &entry.signing);
    key.ok_or_else(|| NoticeError::UnknownNode { node: node.clone(), destination, version })
}

/// Something whose signature was verified, and who said it. Only verifying makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<T> {
    pub(super) node: NodeName,
    pub(super) destination: DestinationTag,
    pub(super) directory: u64,
    pub(super) said: T,
}

impl<T> Verified<T> {
    /// Who said it.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// For which group.
    pub fn destination(&self) -> DestinationTag {
        self.destination
    }

    /// The version of the directory in force where it was signed.
    pub fn directory(&self) -> u64 {
        self.directory
    }

    /// What it said.
    pub fn said(&self) -> &T {
        &self.said
    }
}

/// A refusal or a missing notice as a record carries it: unverified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed<T> {
    destination: DestinationTag,
    node: NodeName,
    directory: u64,
    said: T,
    signature: [u8; SIGNATURE_BYTES],
}

/// What a [`Signed`] notice says, besides who says it.
trait Body: Sized {
    const KIND: Kind;
    const LABEL: &'static [u8];
    fn sender(&self) -> &SenderName;
    fn write(&self, to: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError>;
}

fn signed_bytes<T: Body>(signed: &Signed<T>) -> Vec<u8> {
    let mut to = Writer::with_capacity(256);
    to.put(&signed.destination.0).name(signed.node.as_str()).u64(signed.directory);
    signed.said.write(&mut to);
    to.finish()
}

fn read<T: Body>(from: &mut Reader<'_>) -> Result<Signed<T>, WireError> {
    Ok(Signed {
        destination: DestinationTag(from.array("notice: destination tag")?),
        node: from.name("notice: node")?,
        directory: from.u64("notice: directory version")?,
        said: T::read(from)?,
        signature: from.array("notice: signature")?,
    })
}

fn sign<T: Body>(
    key: &SecretKey,
    node: &NodeName,
    destination: DestinationTag,
    directory: u64,
    said: T,
) -> NoticeRecord {
    let mut signed = Signed { destination, node: node.clone(), directory, said, signature: [0; SIGNATURE_BYTES] };
    let bytes = signed_bytes(&signed);
    signed.signature = key.sign(T::LABEL, &bytes);
    let mut to = begin(T::KIND);
    to.put(&bytes).put(&signed.signature);
    NoticeRecord { key: notice_key(signed.said.sender()), value: to.finish() }
}

fn verify<T: Body>(signed: Signed<T>, directories: &Directories) -> Result<Verified<T>, NoticeError> {
    voter(directories, signed.directory, signed.destination, &signed.node)?
        .verify(T::LABEL, &signed_bytes(&signed), &signed.signature)
        .map_err(|_| NoticeError::Signature { node: signed.node.clone() })?;
    let Signed { destination, node, directory, said, .. } = signed;
    Ok(Verified { node, destination, directory, said })
}

macro_rules! signed {
    ($type:ident) => {
        impl $type {
            /// Signs it. `directory` is the version of the directory in force here, which lists `key` as this node's
            /// signing key.
            pub fn sign(
                self,
                key: &SecretKey,
                node: &NodeName,
                destination: DestinationTag,
                directory: u64,
            ) -> NoticeRecord {
                sign(key, node, destination, directory, self)
            }
        }

        impl Signed<$type> {
            /// Whose parcel it is about.
            pub fn sender(&self) -> &SenderName {
                &self.said.sender
            }

            /// Which group says it.
            pub fn destination(&self) -> DestinationTag {
                self.destination
            }

            /// The node that is named as the signer: unverified.
            pub fn claimed_node(&self) -> &NodeName {
                &self.node
            }

            /// The version of the directory under which it is said to be signed: unverified.
            pub fn claimed_directory(&self) -> u64 {
                self.directory
            }

            /// What is said, unverified: for tools that show records.
            pub fn claimed(&self) -> &$type {
                &self.said
            }

            /// Verifies the signature with the node's key of the directory version that it names. Errors:
            /// [`NoticeError::UnknownDirectory`], [`NoticeError::UnknownNode`], [`NoticeError::Signature`].
            pub fn verify(self, directories: &Directories) -> Result<Verified<$type>, NoticeError> {
                verify(self, directories)
            }
        }
    };
}
signed!(Refusal);
signed!(Missing);

/// A node refuses a parcel for what its bytes are (R22). It decides no transaction; a majority lets the sender seal the
/// same transactions anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Whose parcel it is, by directory name.
    pub sender: SenderName,
    /// The start of the sender's client that sealed it.
    pub epoch: Epoch,
    /// Its id.
    pub parcel: ParcelId,
    /// D: exactly these bytes are refused.
    pub digest: Digest,
    /// Why.
    pub reason: RefusalReason,
}

impl Body for Refusal {
    const KIND: Kind = Kind::Refusal;
    const LABEL: &'static [u8] = label::REFUSAL;

    fn sender(&self) -> &SenderName {
        &self.sender
    }

    fn write(&self, to: &mut Writer) {
        to.name(self.sender.as_str()).put(&self.epoch.0).put(&self.parcel.to_bytes()).put(&self.digest.0);
        to.u8(self.reason.number());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            sender: from.name("refusal: sender")?,
            epoch: Epoch(from.array("refusal: epoch")?),
            parcel: parcel(from, "refusal: parcel")?,
            digest: Digest(from.array("refusal: D")?),
            reason: from.listed(RefusalReason::from_number, "refusal: reason")?,
        })
    }
}

/// A node lacks stripes of an undecided parcel: too few shards of them arrived, or the last stripe is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Whose parcel it is, by directory name.
    pub sender: SenderName,
    /// The start of the sender's client that sealed it.
    pub epoch: Epoch,
    /// Its id.
    pub parcel: ParcelId,
    /// The stripes that lack, first to last; ascending and apart; 1 to [`limits::MISSING_RANGES`]. A range to `u32::MAX`
    /// says: everything from its first stripe on.
    pub stripes: Vec<RangeInclusive<u32>>,
}

impl Body for Missing {
    const KIND: Kind = Kind::Missing;
    const LABEL: &'static [u8] = label::MISSING;

    fn sender(&self) -> &SenderName {
        &self.sender
    }

    fn write(&self, to: &mut Writer) {
        to.name(self.sender.as_str()).put(&self.epoch.0).put(&self.parcel.to_bytes());
        // Callers keep within MISSING_RANGES; what is over it waits for the next notice.
        let ranges = self.stripes.iter().take(limits::MISSING_RANGES);
        to.u16(ranges.len() as u16);
        for range in ranges {
            to.u32(*range.start()).u32(*range.end());
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sender, epoch) = (from.name("missing: sender")?, Epoch(from.array("missing: epoch")?));
        let parcel = parcel(from, "missing: parcel")?;
        let count = from.u16("missing: ranges")?;
        in_range(count.into(), 1, limits::MISSING_RANGES as u64, "missing: ranges")?;
        let mut stripes: Vec<RangeInclusive<u32>> = Vec::new();
        for _ in 0..count {
            let (first, last) = (from.u32("missing: first stripe")?, from.u32("missing: last stripe")?);
            let lowest = stripes.last().map_or(0, |before| u64::from(*before.end()) + 2);
            in_range(first.into(), lowest, u32::MAX.into(), "missing: first stripe")?;
            in_range(last.into(), first.into(), u32::MAX.into(), "missing: last stripe")?;
            stripes.push(first..=last);
        }
        Ok(Self { sender, epoch, parcel, stripes })
    }
}

fn parcel(from: &mut Reader<'_>, field: &'static str) -> Result<ParcelId, WireError> {
    ParcelId::from_bytes(from.array(field)?).map_err(|_| WireError::Invalid { field, expected: "a UUID of version 7" })
}
