//! Values of labels that name neither parts nor people, where no other module has a closed list of them.
//!
//! Owns the words. Must not count anything.

use crate::core::id::closed_list;

closed_list! {
    /// Why a record has no acknowledgement: `sealcast_transport_failed_records_total`.
    pub enum AppendFailure: u8 {
        /// 1: its partition has no broker that answers.
        Absent = 1 "absent",
        /// 2: the broker refuses it.
        Refused = 2 "refused",
        /// 3: the transport was closed.
        Closed = 3 "closed",
    }
}

closed_list! {
    /// What came of asking a member for a body: `sealcast_hold_fetched_bodies_total`.
    pub enum FetchOutcome: u8 {
        /// 1: it gave it.
        Found = 1 "found",
        /// 2: it does not know it.
        NotFound = 2 "not-found",
        /// 3: it was purged.
        Purged = 3 "purged",
        /// 4: this node may not have it.
        NotPermitted = 4 "not-permitted",
        /// 5: it did not answer, or cannot give it now.
        Unavailable = 5 "unavailable",
        /// 6: what it gave is not what the log names.
        Damaged = 6 "damaged",
    }
}

closed_list! {
    /// What became of a sender's query: `sealcast_receipt_queries_total`.
    pub enum QueryOutcome: u8 {
        /// 1: everything that this node can say was said.
        Answered = 1 "answered",
        /// 2: the same client, or its sender, was answered just now; or this very query was.
        TooSoon = 2 "too-soon",
        /// 3: it is malformed, of nobody who may send here, or not signed by who it says.
        NotBelieved = 3 "not-believed",
        /// 4: too many of its partition wait already.
        NoRoom = 4 "no-room",
    }
}
