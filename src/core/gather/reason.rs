//! Why a record is deferred rather than passed: the closed list that the store, logs and metrics use.

use crate::core::id::closed_list;

closed_list! {
    /// Why a record was deferred. All are local: none is a verdict (R21). Numbers are those of the store.
    pub enum DeferReason: u8 {
        /// 1: a version, suite, algorithm or codec of a later version.
        UnknownVersion = 1 "unknown-version",
        /// 2: the directory in force does not list the sender (yet, or any more).
        UnknownSender = 2 "unknown-sender",
        /// 3: the directory in force, or this node, does not have the destination key that it is sealed to.
        KeyMissing = 3 "key-missing",
        /// 4: its sender holds as much memory as one sender may.
        SenderMemory = 4 "sender-memory",
        /// 5: all senders together hold as much memory as they may.
        TotalMemory = 5 "total-memory",
        /// 6: its header contradicts another signed header of the same parcel, which this node follows.
        Equivocation = 6 "equivocation",
        /// 7: nothing of its parcel came for a while; it waits outside memory.
        Stalled = 7 "stalled",
        /// 8: a fault of this node: disk, codec, shutdown.
        Local = 8 "local",
        /// 9: the directory in force has ended, and its grace too: nothing new is admitted until another is in force.
        DirectoryEnded = 9 "directory-ended",
        /// 10: its id is of a time far ahead of group time and of this node's clock: it waits until one of them comes nearer.
        FarAhead = 10 "far-ahead",
        /// 11: as many transactions of its sender are staged and have no fate as may be.
        Undecided = 11 "undecided",
    }
}

impl DeferReason {
    /// Whether nothing of the record could be verified, so that whoever may write to the topic can have made it.
    pub(super) fn is_unverified(self) -> bool {
        matches!(self, Self::UnknownVersion | Self::UnknownSender)
    }

    /// Whether it is read again more and more rarely: it may last, and whoever made the record may make many.
    pub(super) fn grows_rare(self) -> bool {
        self.is_unverified() || self == Self::FarAhead
    }

    /// Whether freed memory ends it.
    pub(super) fn is_memory(self) -> bool {
        matches!(self, Self::SenderMemory | Self::TotalMemory)
    }
}
