//! Consensus: the only place that knows openraft. Must not make a fate (that is `core::decide`).
