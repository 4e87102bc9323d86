//! Every transport behind the contract passes one conformance suite: the embedded one, alone and reached from other
//! processes, the adversary that does nothing, and Kafka on a real cluster. What is particular to one of them follows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

mod transport {
    mod adversary;
    mod attached;
    mod conformance;
    mod embedded;
    mod kafka;
    mod own_topics;
    mod topic_command;
}
