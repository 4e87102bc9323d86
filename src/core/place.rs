//! Which shard goes to which partition, what to do about domains that are slow or away, and when a stripe is accepted (R14, R15).
//! Must not talk to a transport: partitions, acknowledgements and time come in, placements go out.
