//! Sealcast: segmented, encrypted message transport over a Kafka that nobody needs to trust.
//!
//! ```text
//! client  submit -> outbox -> seal -> split -> publish -------------------------.
//!                                                                                v
//!                                                         segments topic of the destination
//! node    collect -> verify -> gather -> recover -> open -> stage --------------'
//!         stage -> report to the leader -> commit (consensus) -> held -> receipt
//! client  await accepted | committed | complete   <- notices topic <-------------'
//! ```
//!
//! No logic lives here. Modules depend on each other in one direction:
//! `cli, testing -> local -> node -> raft -> rpc`, `cli, testing -> client -> rpc`, all of these
//! `-> transport -> store -> seams, config, keys -> core`.

pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod keys;
pub mod local;
pub mod node;
pub mod raft;
pub mod rpc;
pub mod seams;
pub mod store;
pub mod telemetry;
pub mod testing;
pub mod transport;
