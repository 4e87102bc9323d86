//! The sender's side: submit, outbox, seal, split, publish, and counting receipts until a fate is certain.
//! Must not know a node's store or consensus.

pub mod reader;
