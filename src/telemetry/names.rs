//! Every metric, with its unit, its labels and what it counts. Names follow the conventions of Prometheus: base units, `_total`
//! for counters alone, `_timestamp_seconds` for moments. Labels: `node`, `sender` or `reader` says whose it is, `destination` of
//! what; the description names the values of any other. docs/operations.md lists all of them.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

macro_rules! kinds {
    ($($(#[$doc:meta])* $type:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $type(&'static str);

        impl $type {
            /// The name that Prometheus sees.
            pub fn name(self) -> &'static str {
                self.0
            }
        }
    )*};
}

kinds! {
    /// The name of something that only grows.
    CounterName;
    /// The name of something that goes up and down.
    GaugeName;
    /// The name of something of which the distribution matters.
    HistogramName;
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name; that of a histogram without `_bucket`, `_sum`, `_count`.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its unit, which the name says too unless it is a count.
    pub unit: Unit,
    /// The labels that its series have: `a|b` is one of both, `a?` stands where there is something to say.
    pub labels: &'static [&'static str],
    /// What it counts, and the values of labels that name neither parts nor people.
    pub text: &'static str,
}

macro_rules! metrics {
    (
        counters { $($counter:ident = $counter_name:literal, $counter_unit:ident, $counter_labels:expr, $counter_text:literal;)* }
        gauges { $($gauge:ident = $gauge_name:literal, $gauge_unit:ident, $gauge_labels:expr, $gauge_text:literal;)* }
        histograms { $($histogram:ident = $histogram_name:literal, $histogram_unit:ident, $histogram_labels:expr, $histogram_text:literal;)* }
    ) => {
        $(#[doc = $counter_text] pub const $counter: CounterName = CounterName($counter_name);)*
        $(#[doc = $gauge_text] pub const $gauge: GaugeName = GaugeName($gauge_name);)*
        $(#[doc = $histogram_text] pub const $histogram: HistogramName = HistogramName($histogram_name);)*

        /// Tells the installed recorder what each metric is.
        pub fn describe() {
            $(describe_counter!($counter_name, Unit::$counter_unit, $counter_text);)*
            $(describe_gauge!($gauge_name, Unit::$gauge_unit, $gauge_text);)*
            $(describe_histogram!($histogram_name, Unit::$histogram_unit, $histogram_text);)*
        }

        /// All of them. The documentation lists these.
        pub const ALL: &[Metric] = &[
            $(Metric {
                name: $counter_name,
                kind: "counter",
                unit: Unit::$counter_unit,
                labels: &$counter_labels,
                text: $counter_text,
            },)*
            $(Metric {
                name: $gauge_name,
                kind: "gauge",
                unit: Unit::$gauge_unit,
                labels: &$gauge_labels,
                text: $gauge_text,
            },)*
            $(Metric {
                name: $histogram_name,
                kind: "histogram",
                unit: Unit::$histogram_unit,
                labels: &$histogram_labels,
                text: $histogram_text,
            },)*
        ];
    };
}

metrics! {
    counters {
        // --- client
        CLIENT_TRANSACTIONS = "sealcast_client_transactions_total", Count, ["sender", "stage", "reason?"],
            "Transactions of this sender that reached a stage; label stage: submitted, accepted, committed, complete, rejected, expired, forgotten; label reason: why one was rejected.";
        CLIENT_PAYLOAD_BYTES = "sealcast_client_payload_bytes_total", Bytes, ["sender"],
            "Payload bytes that were submitted.";
        CLIENT_PARCELS_SEALED = "sealcast_client_parcels_sealed_total", Count, ["sender"], "Parcels that were sealed.";
        CLIENT_SEGMENTS_PUBLISHED = "sealcast_client_segments_published_total", Count, ["sender", "destination"],
            "Segments that were published for the first time.";
        CLIENT_SEGMENTS_AGAIN = "sealcast_client_segments_again_total", Count, ["sender", "destination", "reason"],
            "Segments that were published again; label reason: unacknowledged, absent-domain, missing-notice, restart, silence.";
        CLIENT_GIVEN_BACK = "sealcast_client_submissions_given_back_total", Count, ["sender", "reason"],
            "Submissions that were given back; label reason: window, outbox, disk.";
        CLIENT_RECEIPTS_REFUSED = "sealcast_client_receipts_refused_total", Count, ["sender", "reason"],
            "Receipts and notices that are not believed; label reason: what was wrong.";
        // --- transport
        TRANSPORT_APPENDED_RECORDS = "sealcast_transport_appended_records_total", Count, ["node|sender", "destination"],
            "Records that were acknowledged.";
        TRANSPORT_APPENDED_BYTES = "sealcast_transport_appended_bytes_total", Bytes, ["node|sender", "destination"],
            "Bytes of records that were acknowledged.";
        TRANSPORT_FAILED_RECORDS = "sealcast_transport_failed_records_total", Count, ["node", "destination", "reason"],
            "Records without acknowledgement; label reason: absent, refused, closed.";
        TRANSPORT_READ_RECORDS = "sealcast_transport_read_records_total", Count, ["node", "destination"],
            "Records that were read.";
        TRANSPORT_READ_BYTES = "sealcast_transport_read_bytes_total", Bytes, ["node", "destination"],
            "Bytes of records that were read.";
        // --- collecting and gathering
        GATHER_SEGMENTS = "sealcast_gather_segments_total", Count, ["node", "destination", "outcome"],
            "Segments that came; label outcome: taken, deferred, refused.";
        GATHER_REFUSED = "sealcast_gather_refused_segments_total", Count, ["node", "destination", "reason"],
            "Records that never become a segment here; label reason: what was wrong.";
        GATHER_DEFERRED_RECORDS = "sealcast_gather_deferred_records_total", Count, ["node", "destination", "reason"],
            "Records that were put off and are read again; label reason: why (R21).";
        GATHER_STRIPES_RECOVERED = "sealcast_gather_stripes_recovered_total", Count, ["node", "destination"],
            "Stripes that needed parity to be recovered.";
        GATHER_ABANDONED = "sealcast_gather_abandoned_parcels_total", Count, ["node", "destination", "reason"],
            "Parcels whose gathering was given up; label reason: expired, or why they were put off.";
        GATHER_EQUIVOCATIONS = "sealcast_gather_equivocations_total", Count, ["node", "destination"],
            "Segments whose signed header contradicts another one of the same parcel (R1).";
        COLLECT_GAPS = "sealcast_collect_gaps_total", Count, ["node", "destination", "reason"],
            "Gaps found in collection offsets: each raises an alarm and a re-read (R17); label reason: what became of the partition.";
        // --- staging, log, holding
        STAGE_PARCELS = "sealcast_stage_parcels_total", Count, ["node", "destination"], "Parcels that were staged.";
        STAGE_BYTES = "sealcast_stage_bytes_total", Bytes, ["node", "destination"],
            "Ciphertext bytes that were staged.";
        STAGE_REFUSALS = "sealcast_stage_refusals_total", Count, ["node", "destination", "reason"],
            "Parcels that this node refused for good; label reason (R22).";
        DECIDE_TRANSACTIONS = "sealcast_decide_transactions_total", Count, ["node", "destination", "fate", "reason"],
            "Transactions that got a fate; label fate: committed, rejected, expired (those that this node had staged); label reason: why one was rejected.";
        DECIDE_ENTRIES = "sealcast_decide_entries_total", Count, ["node", "destination"],
            "Log entries that were applied.";
        DECIDE_VOID = "sealcast_decide_void_parcels_total", Count, ["node", "destination"],
            "Commits whose reporters were no quorum: proposed again (R10).";
        HOLD_FETCHED = "sealcast_hold_fetched_bodies_total", Count, ["node", "destination", "outcome"],
            "Missing bodies that were fetched from a member; label outcome: found, not-found, purged, not-permitted, unavailable, damaged.";
        HOLD_FETCHED_BYTES = "sealcast_hold_fetched_bytes_total", Bytes, ["node", "destination"],
            "Bytes of bodies that were fetched from a member.";
        RECEIPT_STATEMENTS = "sealcast_receipt_statements_total", Count, ["node", "destination"],
            "Statements that were signed.";
        RECEIPT_BATCHES = "sealcast_receipt_batches_total", Count, ["node", "destination"],
            "Signatures that covered them.";
        RECEIPT_QUERIES = "sealcast_receipt_queries_total", Count, ["node", "destination", "outcome"],
            "Queries of senders that came; label outcome: answered, too-soon, not-believed, no-room.";
        RAFT_ELECTIONS = "sealcast_raft_elections_total", Count, ["node", "destination"],
            "Times that this node became leader.";
        // --- store
        STORE_COMMITS = "sealcast_store_commits_total", Count, ["node", "destination"],
            "Durable commits of a group's database.";
        STORE_WRITES = "sealcast_store_writes_total", Count, ["node", "destination"],
            "Requests that those commits carried.";
        // --- gRPC
        RPC_CALLS = "sealcast_rpc_calls_total", Count, ["node", "method"], "Calls that came; label method.";
        RPC_HANDSHAKES = "sealcast_rpc_handshakes_total", Count, ["node", "outcome"],
            "TLS handshakes; label outcome: node, reader, refused, timed-out.";
        RPC_DENIED = "sealcast_rpc_denied_calls_total", Count, ["node", "reason"],
            "Calls that the directory does not let the caller make; label reason: why.";
        RPC_CONNECTS = "sealcast_rpc_connects_total", Count, ["node|reader", "peer", "outcome"],
            "Connections that this node made; label peer; label outcome: connected, failed.";
        READ_TRANSACTIONS = "sealcast_read_transactions_total", Count, ["node", "destination", "method"],
            "Transactions that were given to readers; label method.";
        READ_BYTES = "sealcast_read_bytes_total", Bytes, ["node", "destination"],
            "Payload bytes that were given to readers.";
    }
    gauges {
        CLIENT_OUTBOX_TRANSACTIONS = "sealcast_client_outbox_transactions", Count, ["sender"],
            "Transactions in the outbox.";
        CLIENT_OUTBOX_BYTES = "sealcast_client_outbox_bytes", Bytes, ["sender"], "Sealed bytes in the outbox.";
        CLIENT_WINDOW_BYTES = "sealcast_client_window_bytes", Bytes, ["sender"],
            "Bytes that were published and are not acknowledged.";
        TRANSPORT_PARTITION_UP = "sealcast_transport_partition_up", Count, ["node", "destination", "topic", "partition"],
            "1 when the partition has a leader and a connection; labels topic, partition.";
        COLLECT_LAG_RECORDS = "sealcast_collect_lag_records", Count, ["node", "destination"],
            "Records between the collection offsets and the ends of the partitions.";
        COLLECT_LAG_SECONDS = "sealcast_collect_lag_seconds", Seconds, ["node", "destination"],
            "Age of the oldest record that was not passed.";
        GATHER_BYTES = "sealcast_gather_memory_bytes", Bytes, ["node", "destination"], "Half-gathered bytes in memory.";
        GATHER_DEFERRED = "sealcast_gather_deferred_addresses", Count, ["node", "destination"],
            "Addresses that were deferred.";
        STAGE_UNDECIDED = "sealcast_stage_undecided_transactions", Count, ["node", "destination"],
            "Transactions that are staged and have no fate.";
        RECEIPT_WAITING = "sealcast_receipt_waiting_statements", Count, ["node", "destination"],
            "Statements in memory that no broker has acknowledged; what waits beyond 16,384 waits in the store.";
        RAFT_TERM = "sealcast_raft_term", Count, ["node", "destination"], "The node's term.";
        RAFT_LEADER = "sealcast_raft_leader", Count, ["node", "destination"], "1 when this node leads.";
        RAFT_LAST_INDEX = "sealcast_raft_last_index", Count, ["node", "destination"], "Index of the last log entry.";
        RAFT_APPLIED_INDEX = "sealcast_raft_applied_index", Count, ["node", "destination"],
            "Index of the last entry that was applied.";
        HOLD_INDEX = "sealcast_hold_index", Count, ["node", "destination"], "Log index of the held prefix's end.";
        HOLD_MISSING = "sealcast_hold_missing_bodies", Count, ["node", "destination"],
            "Committed bodies that this node lacks.";
        DECIDE_GROUP_TIME = "sealcast_decide_group_timestamp_seconds", Seconds, ["node", "destination"],
            "Group time, in seconds since 1970.";
        STORE_BYTES = "sealcast_store_bytes", Bytes, ["node", "destination"], "Bytes on disk of database and bodies.";
        STORE_FREE_BYTES = "sealcast_store_free_bytes", Bytes, ["node", "destination"], "Bytes that the disk has left.";
        RPC_CONNECTIONS = "sealcast_rpc_connections", Count, ["node"], "Connections that others made and that stand.";
        READ_SUBSCRIPTIONS = "sealcast_read_subscriptions", Count, ["node", "destination"], "Subscriptions that run.";
        DIRECTORY_VERSION = "sealcast_directory_version", Count, ["node|sender"],
            "Version of the newest directory that was verified.";
        DIRECTORY_VALID_UNTIL = "sealcast_directory_valid_until_timestamp_seconds", Seconds, ["node"],
            "Until when the newest directory is valid, in seconds since 1970.";
        ALARM = "sealcast_alarm", Count, ["node", "destination?", "alarm"],
            "1 while an alarm stands; label alarm: its name.";
    }
    histograms {
        CLIENT_STAGE_SECONDS = "sealcast_client_stage_seconds", Seconds, ["sender", "stage"],
            "From submit to a stage; label stage: accepted, committed, complete.";
        TRANSPORT_ACK_SECONDS = "sealcast_transport_ack_seconds", Seconds, ["sender", "destination", "domain"],
            "From append to acknowledgement; label domain.";
        STAGE_SECONDS = "sealcast_stage_seconds", Seconds, ["node", "destination"],
            "From a parcel's first segment to staged.";
        DECIDE_SECONDS = "sealcast_decide_seconds", Seconds, ["node", "destination"],
            "From staged on this node to a fate.";
        HOLD_SECONDS = "sealcast_hold_seconds", Seconds, ["node", "destination"], "From a fate to held on this node.";
        STORE_COMMIT_SECONDS = "sealcast_store_commit_seconds", Seconds, ["node", "destination"],
            "How long a durable commit took.";
        STORE_COMMIT_WRITES = "sealcast_store_commit_writes", Count, ["node", "destination"],
            "Requests in one durable commit.";
        RPC_HANDSHAKE_SECONDS = "sealcast_rpc_handshake_seconds", Seconds, ["node"], "How long a TLS handshake took.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_convention_and_are_distinct() {
        let mut seen = BTreeSet::new();
        for &Metric { name, kind, unit, labels, text } in ALL {
            assert!(seen.insert(name), "{name} stands twice");
            assert!(name.starts_with("sealcast_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(text.ends_with('.'), "{name}: {text}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let base = name.trim_end_matches("_total");
            assert!(unit != Unit::Bytes || base.ends_with("_bytes"), "{name}: says its unit");
            assert!(unit != Unit::Seconds || base.ends_with("_seconds"), "{name}: says its unit");
            // What scraping adds to histograms, and what other conventions mean.
            let reserved = ["_count", "_sum", "_bucket", "_info", "_created"];
            assert!(!reserved.iter().any(|end| name.ends_with(end)), "{name}");
            assert_eq!(text.contains("since 1970"), name.ends_with("_timestamp_seconds"), "{name}");
            assert!(
                labels[0].split('|').all(|whose| ["node", "sender", "reader"].contains(&whose)),
                "{name}: whose is it?"
            );
        }
    }
}
