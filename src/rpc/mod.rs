//! gRPC: generated code, conversions, and TLS whose peers the directory names. Must not decide anything.

#[allow(missing_docs, clippy::all, reason = "generated; what each item means stands in proto/sealcast/v1")]
pub mod proto {
    //! The messages and services of `proto/sealcast/v1`.
    tonic::include_proto!("sealcast.v1");
}
