//! What topics of a kind survive and cost on a cluster, before they are made.
//!
//! Owns the arithmetic. Must not ask anybody; rates and sizes come in, bytes and words go out.

use std::time::Duration;

use super::Layout;
use crate::core::id::{Digest, Suite};
use crate::core::limits;
use crate::core::seal::envelope_bytes;
use crate::core::split::header::{Profile, header_bytes};
use crate::core::split::segment;

/// What Kafka adds to each record: the batch around it, varints, the key.
const RECORD_BYTES: u64 = 100;
/// A private header with an ordering key and a few headers, and the two stored lengths.
const PRIVATE_BYTES: u64 = 512;
/// What one node says of one transaction: its statement, path and times, and its share of the signature.
const NOTICE_BYTES: u64 = 512;
/// In how many domains each notice is published.
const NOTICE_COPIES: u64 = 2;

/// What is to be carried.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Load {
    /// Transactions a second, on average over the retention.
    pub rate: f64,
    /// Payload bytes of each, on average.
    pub size: u64,
}

/// What topics are planned for.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Outlook {
    /// Where partitions lie.
    pub layout: Layout,
    /// Brokers that have partitions, 1 or more.
    pub brokers: usize,
    /// What fails together among them, 1 to `brokers`.
    pub domains: usize,
    /// Nodes of a destination.
    pub nodes: usize,
    /// How long records stay.
    pub retention: Duration,
    /// What is carried.
    pub load: Load,
}

/// Bytes on the brokers' disks, all copies counted.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Disk {
    /// One transaction, sealed, split and with all that stands around it.
    pub transaction_bytes: u64,
    /// The segments topic, once records begin to go.
    pub segments_bytes: u64,
    /// What nodes say about the same transactions.
    pub notices_bytes: u64,
    /// Each broker's share of both.
    pub broker_bytes: u64,
    /// What senders write to one broker, in bytes a second.
    pub broker_write_rate: f64,
}

impl Outlook {
    /// The profile of a parcel with one transaction of the average size.
    pub fn profile(&self) -> Profile {
        match self.layout {
            Layout::Replicated { .. } => Profile::replicated(),
            Layout::PinnedToEach if self.sealed_bytes() <= Profile::small().stripe_bytes() as u64 => Profile::small(),
            Layout::PinnedToEach => Profile::fitting(self.domains, self.sealed_bytes()),
        }
    }

    /// A transaction of the average size sealed in a parcel of its own. Bundles are smaller.
    fn sealed_bytes(&self) -> u64 {
        let size = self.load.size;
        size + size / 4096 + PRIVATE_BYTES + envelope_bytes(Suite::XWing, 1) as u64
    }

    /// What is written for one transaction, replicas not counted.
    fn written_bytes(&self) -> u64 {
        let (profile, sealed) = (self.profile(), self.sealed_bytes());
        let hashes = profile.n().next_power_of_two().trailing_zeros() as usize;
        let proof = vec![Digest([0; 32]); hashes];
        let around = segment::encode(&vec![0; header_bytes(1)], &[0; 64], 0, &proof, &[]).len() as u64 + RECORD_BYTES;
        let stripes = sealed.div_ceil(profile.stripe_bytes() as u64);
        let shards = sealed.div_ceil(profile.k() as u64) * profile.n() as u64;
        shards + stripes * profile.n() as u64 * around
    }

    /// What it costs.
    pub fn disk(&self) -> Disk {
        let (written, copies) = (self.written_bytes(), self.layout.factor() as u64);
        let count = self.load.rate * self.retention.as_secs_f64();
        let notice = NOTICE_BYTES * self.nodes as u64 * NOTICE_COPIES * copies;
        let segments = (written * copies) as f64 * count;
        let notices = notice as f64 * count;
        let brokers = self.brokers.max(1) as f64;
        Disk {
            transaction_bytes: written * copies,
            segments_bytes: segments as u64,
            notices_bytes: notices as u64,
            broker_bytes: ((segments + notices) / brokers) as u64,
            broker_write_rate: written as f64 * self.load.rate / brokers,
        }
    }

    /// What the loss of brokers does.
    pub fn survives_brokers(&self) -> String {
        match (self.layout, self.domains) {
            (Layout::Replicated { factor: 2 }, _) => {
                "nothing accepted is lost with any one broker; its partitions take nothing until it is back, because both \
                 replicas must be in sync"
                    .to_owned()
            }
            (Layout::Replicated { factor }, _) => format!(
                "any one broker: nothing accepted is lost and sends go on; {} of the {factor} replicas of a partition may be \
                 down at a time",
                factor - 2
            ),
            (Layout::PinnedToEach, 0 | 1) => "none: with one domain, accepted is withheld; commits go on while it is up".to_owned(),
            (Layout::PinnedToEach, 2) => {
                "any one domain: nothing accepted is lost; until it is back accepted is withheld, and commits go on".to_owned()
            }
            (Layout::PinnedToEach, domains) => format!(
                "any one of {domains} domains: nothing accepted is lost and sends go on; with one domain left accepted is \
                 withheld, and commits go on"
            ),
        }
    }

    /// What the loss of nodes does.
    pub fn survives_nodes(&self) -> String {
        let lost = self.nodes.saturating_sub(1) / 2;
        match lost {
            0 => format!("none of {}: without a majority nothing is decided, and nothing is lost", self.nodes),
            _ => format!(
                "any {lost} of {}: a majority decides; without one nothing is decided, and nothing is lost",
                self.nodes
            ),
        }
    }

    /// How a transaction of the average size is cut, and one whose length is not known when it begins.
    pub fn cut(&self) -> String {
        let words = |profile: Profile| {
            let shards = format!("k {}, m {}", profile.k(), profile.m());
            if profile == Profile::small() {
                format!("{shards}: {} equal copies, up to {} KiB", profile.n(), profile.stripe_bytes() / 1024)
            } else {
                format!("{shards}, shards of up to {} KiB", profile.shard_bytes().div_ceil(1024))
            }
        };
        match self.layout {
            Layout::Replicated { .. } => {
                format!("{}: one record for each {} KiB", words(self.profile()), limits::SHARD_BYTES / 1024)
            }
            Layout::PinnedToEach => {
                format!("{}; of unknown length {}", words(self.profile()), words(Profile::coded(self.domains)))
            }
        }
    }
}

/// Alerts of Kafka's providers and tools that topics of this layout raise though all is well, each with why.
pub fn alerts_to_exclude(layout: Layout) -> &'static [(&'static str, &'static str)] {
    match layout {
        Layout::Replicated { .. } => &[],
        Layout::PinnedToEach => &[
            ("topics with replication factor 1", "meant to be: the erasure code is the redundancy"),
            ("partitions at min ISR (AtMinIsrPartitionCount)", "always so with one replica"),
            (
                "offline partitions (OfflinePartitionsCount), partitions without a leader",
                "a broker that is down or restarts takes its partition with it; watch the broker instead",
            ),
            (
                "rolling restarts that wait for every partition to have another replica",
                "there is none; restart one broker (or rack) at a time",
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(layout: Layout, domains: usize, size: u64) -> Outlook {
        let load = Load { rate: 10.0, size };
        Outlook { layout, brokers: domains, domains, nodes: 3, retention: Duration::from_secs(86_400), load }
    }

    #[test]
    fn a_large_payload_costs_half_more_over_three_domains_and_thrice_replicated() {
        let size = 64 << 20;
        let ratio = |outlook: Outlook| outlook.disk().transaction_bytes as f64 / size as f64;
        let coded = ratio(outlook(Layout::PinnedToEach, 3, size));
        assert!((1.5..1.52).contains(&coded), "{coded}");
        let two = ratio(outlook(Layout::PinnedToEach, 2, size));
        assert!((2.0..2.03).contains(&two), "{two}");
        let replicated = ratio(outlook(Layout::Replicated { factor: 3 }, 3, size));
        assert!((3.0..3.01).contains(&replicated), "{replicated}");
    }

    #[test]
    fn disk_grows_with_rate_and_retention_and_is_shared() {
        let one = outlook(Layout::PinnedToEach, 3, 1000);
        let disk = one.disk();
        assert_eq!(disk.segments_bytes, disk.transaction_bytes * 864_000);
        assert_eq!(disk.notices_bytes, 512 * 3 * 2 * 864_000);
        assert_eq!(disk.broker_bytes, (disk.segments_bytes + disk.notices_bytes) / 3);
        let longer = Outlook { retention: one.retention * 2, ..one };
        assert_eq!(longer.disk().segments_bytes, disk.segments_bytes * 2);
    }

    #[test]
    fn transactions_are_cut_as_clients_cut_them() {
        let cut = |size| outlook(Layout::PinnedToEach, 3, size).cut();
        let unknown = "; of unknown length k 8, m 4, shards of up to 64 KiB";
        assert_eq!(cut(1024), format!("k 1, m 2: 3 equal copies, up to 64 KiB{unknown}"));
        assert_eq!(cut(256 << 10), format!("k 2, m 1, shards of up to 129 KiB{unknown}"));
        assert_eq!(cut(16 << 20), format!("k 4, m 2, shards of up to 316 KiB{unknown}"));
        let replicated = outlook(Layout::Replicated { factor: 3 }, 3, 1024).cut();
        assert_eq!(replicated, "k 1, m 0, shards of up to 512 KiB: one record for each 512 KiB");
    }

    #[test]
    fn what_is_lost_is_said_for_each_kind() {
        assert!(outlook(Layout::PinnedToEach, 1, 1).survives_brokers().starts_with("none"));
        assert!(outlook(Layout::PinnedToEach, 2, 1).survives_brokers().contains("accepted is withheld"));
        assert!(outlook(Layout::PinnedToEach, 3, 1).survives_brokers().contains("sends go on"));
        assert!(outlook(Layout::Replicated { factor: 3 }, 3, 1).survives_brokers().contains("1 of the 3 replicas"));
        assert!(outlook(Layout::Replicated { factor: 2 }, 3, 1).survives_brokers().contains("take nothing"));
        assert!(outlook(Layout::PinnedToEach, 3, 1).survives_nodes().starts_with("any 1 of 3"));
        assert!(alerts_to_exclude(Layout::Replicated { factor: 3 }).is_empty());
    }
}
