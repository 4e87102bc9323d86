//! Every bound of Sealcast, each with its reason. What comes from outside is checked against these before it is used
//! and before anything is allocated for it.
//!
//! Owns numbers only; must not touch anything.

/// Longest name of a destination, sender, node, reader or environment, in bytes: a DNS label, so that it fits a topic name.
pub const NAME_BYTES: usize = 63;

/// Longest record on the segments topic, in bytes: below Kafka's default `max.message.bytes` (1,048,588).
pub const SEGMENT_BYTES: usize = 1_000_000;

/// Longest shard, in bytes: one record of the replicated profile (k = 1, m = 0).
pub const SHARD_BYTES: usize = 512 * 1024;

/// Most data shards of a stripe: rebuilding costs k multiplications a byte, and 32 data shards are beyond any cluster's need.
pub const DATA_SHARDS: usize = 32;

/// Most parity shards of a stripe: k / (b - 1) over two domains needs as many as there are data shards.
pub const PARITY_SHARDS: usize = 32;

/// Longest proof, in hashes: the depth of a tree over `DATA_SHARDS + PARITY_SHARDS` leaves.
pub const PROOF_HASHES: usize = 6;

/// Most destinations of a parcel: each costs an encapsulation (1,120 bytes in suite 2) and 40 bytes in every header.
pub const DESTINATIONS: usize = 16;

/// Most transactions of a parcel: its manifest travels in one log entry.
pub const TRANSACTIONS_PER_PARCEL: usize = 1024;

/// Longest payload of a transaction, in bytes (64 GiB): a STREAM of 2^20 chunks, far below its counter.
pub const PAYLOAD_BYTES: u64 = 64 << 30;

/// Longest envelope, in bytes: `DESTINATIONS` encapsulations of suite 2 with their wrapped keys.
pub const ENVELOPE_BYTES: usize = 32 * 1024;

/// Longest private header of a transaction, in bytes: it must fit the STREAM's first chunk (64 KiB).
pub const PRIVATE_HEADER_BYTES: usize = 32 * 1024;

/// Longest ordering key or idempotency key, in bytes.
pub const KEY_BYTES: usize = 256;

/// Most application headers of a transaction.
pub const HEADERS: usize = 64;

/// Longest name of an application header, in bytes.
pub const HEADER_NAME_BYTES: usize = 128;

/// Longest value of an application header, in bytes.
pub const HEADER_VALUE_BYTES: usize = 4096;

/// Longest trace context, in bytes: a W3C `traceparent` and a short `tracestate`.
pub const TRACE_BYTES: usize = 512;

/// Longest directory, in bytes: it travels in a log entry and in a notice.
pub const DIRECTORY_BYTES: usize = 512 * 1024;

/// Longest record on the notices topic, in bytes: as for segments.
pub const NOTICE_BYTES: usize = 1_000_000;

/// Most statements that one signature covers (R13): the depth of its tree stays below 12.
pub const RECEIPTS_PER_BATCH: usize = 2048;

/// Longest log entry, in bytes: below the gRPC limit, with room for its frame.
pub const ENTRY_BYTES: usize = 2 * 1024 * 1024;

/// Longest gRPC message that a node takes, in bytes.
pub const RPC_BYTES: usize = 4 * 1024 * 1024;

/// A transaction whose ciphertext is at most this many bytes lies in the group's database, and becomes durable with the others
/// that are staged at once; a larger one is a file, with two fsyncs of its own. Payloads of 64 KiB with all that goes with
/// them are below it.
pub const SMALL_BODY_BYTES: usize = 128 * 1024;

/// Small bodies that a node holds in memory until they are staged, for one destination, in bytes; beyond it they go to files.
/// More than collecting lets wait to be opened and stored, so that only half-opened parcels ever come to it.
pub const SMALL_BODIES_BYTES: usize = 24 * 1024 * 1024;

/// Longest stripe that a sender makes, in bytes, without its parity: what it takes of [`GATHER_BYTES_LEAST`] leaves room for what
/// comes beside it.
pub const STRIPE_BYTES: usize = 1280 * 1024;

/// Least bytes of half-gathered segments that a destination allows a sender, and all together: twice a stripe of
/// [`STRIPE_BYTES`] and what its segments cost beside their shards. With less, none would ever be whole.
pub const GATHER_BYTES_LEAST: usize = 3 * 1024 * 1024;

/// Half-gathered bytes that one sender may hold in a node's memory (R16).
pub const GATHER_BYTES_PER_SENDER: usize = 24 * 1024 * 1024;

/// Half-gathered bytes that a node holds in memory for all senders of all its destinations (R16).
pub const GATHER_BYTES: usize = 48 * 1024 * 1024;

/// Deferred addresses kept for each sender of a node's destinations, and twice as many for all senders; beyond it the newest
/// go first (R16). Each costs about half a kibibyte.
pub const DEFERRED_PER_SENDER: usize = 32_768;

/// Transactions of one sender that a node stages while they have no fate, for one destination, and as many again of parcels in
/// which something can be decided at once; beyond it parcels wait outside memory. The leader's table holds about a kibibyte
/// for each.
pub const UNDECIDED_PER_SENDER: usize = 32_768;

/// Most voters of a destination: a majority of 15 is 8 signatures for each receipt, and Raft gains nothing beyond it.
pub const VOTERS: usize = 15;

/// Most keys of a destination, current and retired together: one a month for ten years.
pub const KEYS_PER_DESTINATION: usize = 120;

/// Longest life, window, retention or grace that a directory may name, in milliseconds: ten years of 366 days.
pub const LONGEST_SPAN_MILLIS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// Longest `host:port` of a node, in bytes: a DNS name, a colon and a port.
pub const ADDRESS_BYTES: usize = 260;

/// Longest key file or key ring file, in bytes: `KEYS_PER_DESTINATION` secrets of 32 bytes, as text, with comments.
pub const KEY_FILE_BYTES: usize = 64 * 1024;

/// Verified header signatures kept so that a stripe costs one verification (32 bytes each, about half a mebibyte).
pub const CACHED_SIGNATURES: usize = 8192;

/// Different signed headers of one stripe that are gathered side by side before the chain tells which is followed: an honest
/// sender has one (R1).
pub const HEADERS_PER_STRIPE: usize = 2;

/// Parcels that ended and are remembered until they expire, so that their late segments cost nothing: the store knows them
/// too, so forgetting one costs a second gathering, no more.
pub const ENDED_PARCELS: usize = 65_536;

/// How far a sender's clock may have gone back between submitting and sealing, in milliseconds: a parcel's expiry is at most
/// its id's time, the destination's longest life and this.
pub const EXPIRY_SLACK_MILLIS: u64 = 3600 * 1000;

/// How far ahead of group time, and of the node's clock, a parcel's id may be, in milliseconds, before its records wait for one of
/// them to come nearer: a deadline is counted from an id's time, and must be within reach. A week: it is for ids of years to
/// come, not for clocks that differ.
pub const AHEAD_MILLIS: u64 = 7 * 24 * 3600 * 1000;

/// Longest content type of a transaction, in bytes: media types of the registry are far shorter.
pub const CONTENT_TYPE_BYTES: usize = 128;

/// Longest plaintext of a transaction's STREAM, in bytes (72 GiB): the longest payload, its private header, and what Padmé
/// adds to them (less than 12 %).
pub const STREAM_BYTES: u64 = 72 << 30;

/// Widest window of a zstd frame, as a power of two (8 MiB): what opening a compressed payload may cost in memory.
pub const ZSTD_WINDOW_LOG: u32 = 23;
/// Most ranges of stripes in a *missing* notice: what is lost beyond them is asked for with the next one.
pub const MISSING_RANGES: usize = 256;

/// Most tickets in one query of a sender.
pub const TICKETS_PER_QUERY: usize = 256;

/// Clients of one sender whose last query a node remembers; of more, those that asked last.
pub const ASKING_EPOCHS: usize = 64;

/// Longest query of a sender, in bytes: so many tickets with their payload tags, and what stands around them.
pub const QUERY_BYTES: usize = 135 + TICKETS_PER_QUERY * 57;

/// Most statements that a client keeps of one node about one transaction: one for each directory version that it names.
pub const STATEMENTS_PER_NODE: usize = 4;

/// Most ordering keys of one subscription: each costs a look-up a page.
pub const FILTER_KEYS: usize = 64;

/// Most headers that a subscription compares.
pub const FILTER_HEADERS: usize = 16;
