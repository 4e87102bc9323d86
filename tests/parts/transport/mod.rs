//! Every transport behind the contract passes one conformance suite: the embedded one, alone and reached from other
//! processes, the adversary that does nothing, and Kafka on a real cluster. What is particular to one of them follows.

mod adversary;
mod attached;
mod conformance;
mod embedded;
mod kafka;
mod own_topics;
mod topic_command;
