//! The gate: one record at a time, from bytes to a verified segment of this destination, in the order of
//! docs/wire-format.md, "Order of checks". Nothing is kept for a record that does not come through.

use std::sync::Arc;

use bytes::Bytes;

use super::reason::DeferReason;
use super::skip::SkipReason;
use crate::core::directory::Directory;
use crate::core::id::{DestinationTag, Time, VerifyingKeyBytes};
use crate::core::split::segment::{Segment, SegmentError, SignatureCache, VerifiedSegment};

/// Why a record does not come through the gate. Every node finds the same in the same bytes under the same directory and
/// group time, except where it is a deferral.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// Another kind of record: queries of senders share the topic.
    #[error("not a segment")]
    NotSegment,
    /// Too large, truncated, trailing bytes, a field out of range.
    #[error(transparent)]
    Malformed(SegmentError),
    /// Of another environment.
    #[error("of another environment")]
    OtherEnvironment,
    /// Not for this destination.
    #[error("for another destination")]
    OtherDestination,
    /// Group time has passed its expiry.
    #[error("expired")]
    Expired,
    /// The sender did not sign the header.
    #[error("the header's signature does not verify")]
    Signature,
    /// The shard is not the one that the header covers.
    #[error("shard and proof do not lead to the header's root")]
    Proof,
    /// A version, suite, algorithm or codec that this program does not know: deferred (R21).
    #[error("of an unknown version: {0}")]
    UnknownVersion(SegmentError),
    /// A sender that the directory does not list: deferred (R21).
    #[error("the directory does not list the sender {0}")]
    UnknownSender(VerifyingKeyBytes),
}

impl Skip {
    /// The word for logs and metrics: that of the [`SkipReason`], or of the [`DeferReason`] when it is deferred.
    pub fn word(&self) -> &'static str {
        let reason = match self {
            Self::NotSegment => SkipReason::NotSegment,
            Self::Malformed(_) => SkipReason::Malformed,
            Self::OtherEnvironment => SkipReason::OtherEnvironment,
            Self::OtherDestination => SkipReason::OtherDestination,
            Self::Expired => SkipReason::Expired,
            Self::Signature => SkipReason::Signature,
            Self::Proof => SkipReason::Proof,
            Self::UnknownVersion(_) => return DeferReason::UnknownVersion.word(),
            Self::UnknownSender(_) => return DeferReason::UnknownSender.word(),
        };
        reason.word()
    }

    /// The deferral that it calls for; `None` when the record's offset passes (R16).
    pub fn deferral(&self) -> Option<DeferReason> {
        match self {
            Self::UnknownVersion(_) => Some(DeferReason::UnknownVersion),
            Self::UnknownSender(_) => Some(DeferReason::UnknownSender),
            _ => None,
        }
    }

    /// Whether the same record can come through later.
    pub fn retryable(&self) -> bool {
        self.deferral().is_some()
    }
}

/// Checks records against the directory in force.
#[derive(Debug)]
pub struct Gate {
    directory: Arc<Directory>,
    tag: DestinationTag,
    cache: SignatureCache,
}

impl Gate {
    /// The gate of one destination.
    pub fn new(directory: Arc<Directory>, tag: DestinationTag) -> Self {
        Self { directory, tag, cache: SignatureCache::default() }
    }

    /// Another directory is in force. Cached signatures stay: they say what a key signed, not who it is.
    pub fn set_directory(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
    }

    /// Size and magic; is it mine; sender known; expiry against group time; signature; proof. Admission follows in
    /// [`super::Reassembler::receive`]. A sender that is known and may not send here comes through: apply judges permission
    /// at the transaction's position (R8). Errors: [`Skip`].
    pub fn check(&self, record: &Bytes, group_time: Time) -> Result<VerifiedSegment, Skip> {
        let segment = Segment::parse(record).map_err(|error| match error {
            SegmentError::Magic => Skip::NotSegment,
            error if error.retryable() => Skip::UnknownVersion(error),
            error => Skip::Malformed(error),
        })?;
        let core = &segment.header().core;
        if core.environment != self.directory.environment {
            return Err(Skip::OtherEnvironment);
        }
        if core.destination(&self.tag).is_none() {
            return Err(Skip::OtherDestination);
        }
        let sender = self.directory.sender_by_key(&core.sender).ok_or(Skip::UnknownSender(core.sender))?;
        if group_time > core.expiry {
            return Err(Skip::Expired);
        }
        segment.verify(&self.cache, &sender.signing).map_err(|error| match error {
            SegmentError::Proof => Skip::Proof,
            _ => Skip::Signature,
        })
    }
}
