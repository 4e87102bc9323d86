//! Makes Rust from `proto/`, without protoc: protox parses, prost and tonic generate.

use std::error::Error;

const FILES: [&str; 4] = [
    "proto/sealcast/v1/types.proto",
    "proto/sealcast/v1/peer.proto",
    "proto/sealcast/v1/reader.proto",
    "proto/sealcast/embedded/v1/embedded.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/rpc/build.rs");
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Payloads and shards are handed on without copies; maps keep one order.
    tonic_prost_build::configure().bytes(".").btree_map(".").emit_rerun_if_changed(false).compile_fds(descriptors)?;
    Ok(())
}
