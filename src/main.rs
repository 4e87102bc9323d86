//! The `sealcast` command.
fn main() {}
