//! gRPC: generated code, conversions, and TLS whose peers the directory names. Must not decide anything.
//!
//! - [`proto`] is what `proto/sealcast/v1` says; [`convert`] turns its messages into the core's types and back.
//! - [`tls`] makes certificates and checks those of others: a key of the directory, or nothing.
//! - [`access`] says, at each call, who calls and what the directory in force lets it do.
//! - [`server`] takes connections, [`client`] makes them.

use std::sync::Arc;

use crate::core::directory::Directory;

pub mod access;
pub mod client;
pub mod convert;
pub mod server;
pub mod tls;

#[allow(missing_docs, clippy::all, reason = "generated; what each item means stands in proto/sealcast/v1")]
pub mod proto {
    //! The messages and services of `proto/sealcast/v1`.
    tonic::include_proto!("sealcast.v1");
}

/// The newest verified directory. Whoever reads a newer one sends it here; handshakes and calls after that see it.
pub type DirectoryWatch = tokio::sync::watch::Receiver<Arc<Directory>>;
