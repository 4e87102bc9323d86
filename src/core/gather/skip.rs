//! Why a record is passed over and why a partition counts as another one: the closed lists that logs and metrics use.

use super::cursor::Gap;
use crate::core::id::closed_list;

closed_list! {
    /// Why a record of the segments topic is passed over: it never becomes a segment of this destination.
    pub enum SkipReason: u8 {
        /// 1: another kind of record, a sender's query for one.
        NotSegment = 1 "not-segment",
        /// 2: too large, truncated, trailing bytes, a field out of range.
        Malformed = 2 "malformed",
        /// 3: of another environment.
        OtherEnvironment = 3 "other-environment",
        /// 4: for another destination.
        OtherDestination = 4 "other-destination",
        /// 5: group time has passed its expiry.
        Expired = 5 "expired",
        /// 6: its sender did not sign the header.
        Signature = 6 "signature",
        /// 7: the shard is not the one that the header covers.
        Proof = 7 "proof",
        /// 8: it was deferred, and the topic has it no more.
        Gone = 8 "gone",
    }
}

closed_list! {
    /// Why a partition is not the one that was read ([`Gap`], R17).
    pub enum GapReason: u8 {
        /// 1: retention removed what was not read.
        Removed = 1 "removed",
        /// 2: another record stands where one was read.
        Changed = 2 "changed",
        /// 3: its log was cut or made anew: it does not reach to where it was read, or begins earlier than it did.
        MadeAnew = 3 "made-anew",
    }
}

impl GapReason {
    /// What a gap is counted as.
    pub fn of(gap: &Gap) -> Self {
        match gap {
            Gap::Below { .. } => Self::Removed,
            Gap::Changed { .. } => Self::Changed,
            _ => Self::MadeAnew,
        }
    }
}
