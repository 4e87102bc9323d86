//! Every alarm that a node can raise, by name: what `node status` and the gauge `sealcast_alarm` show, and docs/operations.md
//! explains.
//!
//! Owns the names and how each ends. Must not know when one is raised.

/// An alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    /// Its name, or what its name begins with when `of` is not empty.
    pub name: &'static str,
    /// What follows the name, as documents write it: the number of a partition (`N`), the name of a `DESTINATION`.
    pub of: &'static str,
    /// Whether it stands until a person says that it was looked at: what it tells of happened, and nothing that the node could
    /// see ends it.
    pub needs_a_person: bool,
}

macro_rules! alarms {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $of:literal, $person:literal;)*) => {
        $($(#[$doc])* pub const $constant: &str = $name;)*

        /// All of them.
        pub const ALL: &[Alarm] = &[$(Alarm { name: $name, of: $of, needs_a_person: $person },)*];
    };
}

alarms! {
    /// The directory ends soon, or has ended.
    DIRECTORY_VALID_UNTIL = "directory-valid-until", "", false;
    /// So little is free that nothing new is taken in; the destination follows.
    DISK_NEARLY_FULL = "disk-nearly-full-", "DESTINATION", false;
    /// The segments topic cannot be used.
    TOPIC_UNREACHABLE = "topic-unreachable", "", false;
    /// One partition cannot be read; its number follows.
    PARTITION_UNREACHABLE = "partition-unreachable-", "N", false;
    /// Receipts cannot be published.
    NOTICES_UNREACHABLE = "notices-unreachable", "", false;
    /// A partition lost records that were not read; its number follows (R17).
    GAP = "gap-", "N", true;
    /// A sender signed what contradicts itself (R1).
    EQUIVOCATION = "equivocation", "", true;
    /// No node gives the bytes of a committed transaction.
    BODY_MISSING = "body-missing", "", false;
    /// This node refused what a majority staged (R22).
    REFUSED_BUT_COMMITTED = "refused-but-committed", "", true;
    /// The disk is too full to note what is to be read again.
    NOTES_NOT_KEPT = "notes-not-kept", "", false;
    /// Parcels cannot be kept here.
    STAGING_FAILS = "staging-fails", "", false;
    /// A version is in force in one group under which another could not go on.
    DIRECTORY_CONTRADICTS = "directory-contradicts", "", false;
    /// A newer directory was offered under which the group cannot go on.
    DIRECTORY_REFUSED = "directory-refused", "", false;
    /// The store cannot be read.
    STORE_UNREADABLE = "store-unreadable", "", false;
    /// A restarted node could not ask all its peers (R12).
    PEERS_NOT_ASKED = "peers-not-asked", "", true;
    /// The store is older than what a peer saw of it (R12).
    STORE_RESTORED = "store-restored", "", false;
    /// The group exists and does not know this store (R12).
    STORE_NOT_ADMITTED = "store-not-admitted", "", false;
}

/// Whether the alarm of this name stands until a person says that it was looked at.
pub fn needs_a_person(name: &str) -> bool {
    let is = |alarm: &&Alarm| match alarm.of {
        "" => alarm.name == name,
        _ => name.starts_with(alarm.name),
    };
    ALL.iter().find(is).is_some_and(|alarm| alarm.needs_a_person)
}
