//! The arms, the conditions and what each is: names for tables and sentences for readers.

/// A way to bring a payload to the readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arm {
    /// One record, as it is, replication 1.
    PlainOne,
    /// One record, as it is, replication 3.
    PlainThree,
    /// One record, sealed, replication 1.
    SealedOne,
    /// One record, sealed, replication 3.
    SealedThree,
    /// Sealed, eight pieces without parity, replication 1.
    ChunksOne,
    /// Sealed, eight pieces without parity, replication 3.
    ChunksThree,
    /// Sealed at replication 3, three consumers with a store that answer.
    Pipeline,
    /// Sealcast, its outbox in memory.
    Memory,
    /// Sealcast, its outbox on disk.
    Disk,
    /// Sealcast on topics of replication 3, its outbox on disk.
    Replicated,
}

impl Arm {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PlainOne,
        Self::PlainThree,
        Self::SealedOne,
        Self::SealedThree,
        Self::ChunksOne,
        Self::ChunksThree,
        Self::Pipeline,
        Self::Memory,
        Self::Disk,
        Self::Replicated,
    ];

    /// Its name in tables and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::PlainOne => "big record RF1",
            Self::PlainThree => "big record RF3",
            Self::SealedOne => "big sealed RF1",
            Self::SealedThree => "big sealed RF3",
            Self::ChunksOne => "chunks RF1",
            Self::ChunksThree => "chunks RF3",
            Self::Pipeline => "hand-made pipeline",
            Self::Memory => "sealcast, memory outbox",
            Self::Disk => "sealcast, disk outbox",
            Self::Replicated => "sealcast RF3",
        }
    }

    /// Its name as it is typed: `sealcast-memory-outbox`.
    pub fn slug(self) -> String {
        self.word().to_lowercase().replace(", ", "-").replace(' ', "-")
    }

    /// What it does, and what it gives and does not give.
    pub fn gives(self) -> &'static str {
        match self {
            Self::PlainOne => {
                "One Kafka record, not encrypted, on a topic of replication 1. Brokers read everything; a lost broker loses it."
            }
            Self::PlainThree => "The same at replication 3, acks=all, min ISR 2. Brokers read everything.",
            Self::SealedOne => {
                "The payload sealed with Sealcast's own suite 1 (HPKE X25519, ChaCha20-Poly1305 in chunks), one record, replication \
                 1. No signature, no proof of what a broker altered before it is opened, no consensus, no receipt; a lost broker \
                 loses it."
            }
            Self::SealedThree => {
                "The same at replication 3, acks=all, min ISR 2: what a team would use today. No signature, no consensus, no receipt."
            }
            Self::ChunksOne => {
                "The sealed bytes in eight records over three partitions, replication 1, put together by the reader: all eight \
                 are needed. No parity, no signature, no consensus, no receipt."
            }
            Self::ChunksThree => "The same at replication 3, acks=all, min ISR 2.",
            Self::Pipeline => {
                "What a team writes in a week: the big sealed record at replication 3; three consumers open it, write it to a store \
                 (redb, fsync, one transaction for what came together) and answer on a topic of replication 3; two answers are \
                 its *committed*. No signatures, no one order on all three, no fate that all agree on, no recovery of what one \
                 consumer lacks."
            }
            Self::Memory => {
                "Sealcast: signed, sealed, two data shards and a parity shard, or four and two, over three brokers at replication 1, three \
                 nodes that stage with fsync, decide by consensus and sign receipts; *committed* is a majority of receipts that \
                 the client verified. What the outbox holds is lost with the client's process."
            }
            Self::Disk => {
                "The same, and what was submitted survives the client's crash (fsync before anything is sent)."
            }
            Self::Replicated => {
                "Sealcast on topics that the cluster replicates three times (k = 1, m = 0, acks=all, min ISR 2), outbox on disk."
            }
        }
    }

    /// Whether nodes and clients of Sealcast do it.
    pub fn is_sealcast(self) -> bool {
        matches!(self, Self::Memory | Self::Disk | Self::Replicated)
    }

    /// Whether somebody confirms that a majority has stored it.
    pub fn commits(self) -> bool {
        self.is_sealcast() || self == Self::Pipeline
    }

    /// Copies of each record on the brokers.
    pub fn factor(self) -> usize {
        match self {
            Self::PlainOne | Self::SealedOne | Self::ChunksOne | Self::Memory | Self::Disk => 1,
            _ => 3,
        }
    }
}

/// What happens to the brokers meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Nothing; clients and brokers talk directly.
    AllWell,
    /// Nothing; every byte, replication too, passes a proxy of each broker.
    AllWellProxied,
    /// The second broker's bytes come 100 ms later in each direction, for clients and other brokers.
    Slow,
    /// The second broker is stopped (SIGSTOP) for five seconds.
    Paused,
    /// The second broker is killed (SIGKILL) and stays away.
    Killed,
    /// All brokers are ended (SIGTERM) and started again, one after the other.
    Rolled,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::AllWell, Self::AllWellProxied, Self::Slow, Self::Paused, Self::Killed, Self::Rolled];

    /// Its name as it is typed: `one-broker-killed`.
    pub fn slug(self) -> String {
        self.word().replace(", ", "-").replace(' ', "-").replace('+', "")
    }

    /// Its name in tables and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::AllWell => "all well",
            Self::AllWellProxied => "all well, proxies",
            Self::Slow => "one broker +200 ms",
            Self::Paused => "one broker paused 5 s",
            Self::Killed => "one broker killed",
            Self::Rolled => "all brokers rolled",
        }
    }

    /// The undisturbed condition on the same cluster.
    pub fn undisturbed(self) -> Self {
        match self {
            Self::AllWellProxied | Self::Slow => Self::AllWellProxied,
            _ => Self::AllWell,
        }
    }
}

/// What a person typed, among these by their typed names; the error lists them.
pub fn typed<T: Copy>(text: &str, all: &[T], slug: impl Fn(T) -> String) -> Result<T, String> {
    let known = all.iter().copied().find(|one| slug(*one) == text);
    let list = || all.iter().map(|one| slug(*one)).collect::<Vec<_>>().join(", ");
    known.ok_or_else(|| format!("not one of {}", list()))
}

/// A size in bytes as people write it: `64 KiB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}
