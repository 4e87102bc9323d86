//! The client's side. Sending: submit, outbox, seal, split, publish, and counting receipts until a fate is certain. Reading
//! what is committed: [`reader`]. Must not know a node's store or consensus.
//!
//! ```text
//! service (Client) --> bundle, stream --> sealing --> store::outbox --> publishing --> transport
//!                                                         ^                 ^
//!                                                         |                 | missing
//! handle (Handle)  <--------- tracker <-------------------+---- counting <-- notices <-- transport
//! ```

mod asking;
mod background;
mod bundle;
mod check;
mod counting;
mod error;
mod handle;
mod many;
mod notices;
mod options;
mod publishing;
pub mod reader;
mod renewal;
mod sealing;
mod service;
mod start;
mod stream;
mod tracker;
mod transaction;
mod window;

pub use error::{ClientError, SubmitError};
pub use handle::{Handle, NodeTimes, Receipt, Stage, StageTimes, WaitError, Waited};
pub use options::Options;
pub use service::Client;
pub use transaction::Transaction;
