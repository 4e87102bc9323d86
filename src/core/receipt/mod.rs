//! What nodes say: receipts, refusals, missing notices; their signatures, and how a client counts them (R13, R22).
//!
//! Owns the records of the notices topic and the queries that senders ask for them. Must not decide fates.

mod batch;
mod count;
mod notice;
mod query;
mod statement;

pub use batch::{NoticeRecord, Receipts, sign_receipts};
pub use count::{Added, Agreed, Counter, Refusals};
pub use notice::{Missing, NOTICE_MAGIC, Notice, NoticeError, Refusal, Signed, Verified, notice_key};
pub use query::{Answered, Present, QUERY_MAGIC, Query, QueryError, is_query};
pub use statement::{Decided, StageTimes, Statement, Verdict};

/// The version of notices and queries that this code writes, and the only one that it reads.
pub const NOTICE_VERSION: u8 = 1;

/// Directories that a client or node verified, by version.
pub type Directories = std::collections::BTreeMap<u64, std::sync::Arc<crate::core::directory::Directory>>;
