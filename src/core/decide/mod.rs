//! Fates: the shape of a log entry, the leader's tally of reports, and `apply`, the only place where a fate is made (R4).
//! Must not do I/O, ask the time or read configuration.

mod apply;
mod encode;
mod entry;
mod item;
mod manifest;
mod propose;
mod rows;
mod view;

pub use crate::core::id::First;
pub use apply::{ApplyError, apply};
pub use entry::{Commit, DirectoryOp, ENTRY_VERSION, Entry, EntryError, Op, op_number};
pub use manifest::{MANIFEST_VERSION, Manifest, ManifestItem, Predecessor};
pub use propose::{Proposal, Report, Staged, Tally, Wait};
pub use rows::{Claim, Decision, ROW_VERSION, Row, Standing, expired, horizon, standing};
pub use view::{Applied, Changes, DirectoryChange, Outcome, View};
