//! The client's side, for services. Sending: submit, outbox, seal, split, publish, and counting receipts until a fate is
//! certain. Reading what is committed: [`reader`]. Must not know a node's store or consensus.
//!
//! # A guide
//!
//! A sender's `client.toml` says who it is and where Kafka is; `sealcast init` writes one for each sender of an environment.
//! One [`Client`] for each process is enough: it is cheap to clone, and its outbox belongs to it alone.
//!
//! ```no_run
//! use sealcast::client::{Client, Transaction};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("client.toml").await?;
//! let handle = client.submit("orders", Transaction::new("ten nails").key("customer-42")).await?;
//! let receipt = handle.committed().await?;
//! println!("{} at {:?}, signed by {:?}", handle.ticket(), receipt.position, receipt.signers);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! **What is promised when.** When [`Client::submit`] returns, the transaction is durable in the outbox: it is sent until it
//! has a fate, over crashes and restarts. [`Handle::accepted`]: the brokers have it too. [`Handle::committed`]: a majority of
//! the destination's nodes signed that they hold it, and this client has verified that; it cannot change any more.
//! [`Handle::complete`]: all of them did. Dropping a handle, or the future of a wait, cancels nothing: only the deadline does.
//!
//! **No answer means unknown, never failed.** A wait with an end gives [`Waited::Unknown`]. Keep the [`Handle::ticket`], and
//! ask again with [`Client::attach`], from another process too, before or after the deadline:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use sealcast::client::{Client, Stage, Waited};
//!
//! # async fn example(client: Client, kept: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let handle = client.attach(&kept.parse()?).await?;
//! match handle.wait(Stage::Committed, Duration::from_secs(30)).await? {
//!     Waited::Reached => println!("committed: {:?}", handle.receipt()),
//!     Waited::Rejected(reason) => println!("consensus rejected it: {}", reason.word()),
//!     Waited::Expired => println!("it expired, and will never be committed"),
//!     Waited::Unknown => println!("nobody knows yet: ask again later"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Fates and failures are different things.** A rejection or expiry is what consensus decided: the same on all nodes, and
//! final. A [`ClientError`] is local trouble that decides nothing. Every error has `retryable()`: true when the same call can
//! succeed later by itself, false when the call, the configuration or the directory must change first. A submission that
//! finds no room gives its transaction back:
//!
//! ```no_run
//! use sealcast::client::{Client, Handle, SubmitError, Transaction};
//!
//! async fn submit(client: &Client, mut transaction: Transaction) -> Result<Handle, SubmitError> {
//!     loop {
//!         match client.submit("orders", transaction).await {
//!             Err(refused) if refused.retryable() => {
//!                 transaction = *refused.transaction;
//!                 client.ready(transaction.payload().len() as u64).await;
//!                 tokio::time::sleep(std::time::Duration::from_millis(100)).await;
//!             }
//!             submitted => return submitted,
//!         }
//!     }
//! }
//! ```
//!
//! **Order, once, compare-and-set.** Transactions of one outbox with one [`Transaction::key`] go in the order of their
//! submission. [`Transaction::id`] and [`Transaction::idempotency_key`] give repeats one effect. With
//! [`Transaction::expected_version`] the loser of a race is rejected(conflict), reads the key again and retries.
//!
//! **Several destinations** ([`Client::submit_to`]) get one parcel, and have an outcome each: there is no atomic commit across
//! them. **Large payloads** are read, sealed and sent piece by piece ([`Client::submit_reader`], [`Client::submit_file`]).
//! **Many small ones** share parcels by themselves when they come within a short time; [`Client::submit_all`] takes a stream
//! of them, in order.
//!
//! **In cargo's dev profile** sealing is slow unless what a program depends on is optimised: Sealcast's own profiles do not
//! reach its dependants. In the program's Cargo.toml:
//!
//! ```toml
//! [profile.dev.package."*"]
//! opt-level = 2
//! ```
//!
//! **Reading** is another role, with a key of its own: [`reader::Reader`].
//!
//! # How it works
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
mod pause;
mod piecewise;
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

pub use counting::Disbelief;
pub use error::{ClientError, SubmitError};
pub use handle::{Handle, NodeTimes, Receipt, Stage, StageTimes, WaitError, Waited};
pub use options::{Interceptor, Options};
pub use service::Client;
pub use transaction::Transaction;

pub use crate::store::outbox::{OutboxError, OutboxOptions, Outcome};
