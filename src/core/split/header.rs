//! The core C, which is equal in all stripes of a parcel, and the signed, chained header of each stripe (design,
//! sections 3 and 4; docs/wire-format.md, "Core and stripe header").
//!
//! Owns their bytes, ranges, digests and signatures. Must not know shards, nor who may send.

use std::time::Duration;

use sha2::Digest as _;

use crate::core::id::{DestinationTag, Digest, EnvironmentId, Epoch, KeyId, ParcelId, Suite, Time, VerifyingKeyBytes};
use crate::core::limits;
use crate::core::sign::{PublicKey, SIGNATURE_BYTES, SecretKey, SignError};
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// The first four bytes of a core.
pub const CORE_MAGIC: [u8; 4] = *b"SCCO";

/// The version of core, header and segment that this program writes and reads.
pub const VERSION: u8 = 1;

/// The only signature algorithm: pure Ed25519 (RFC 8032).
const SIGNATURE_ED25519: u8 = 1;

/// The only codec: systematic Reed-Solomon over GF(2^8), polynomial 0x11d.
const CODEC_REED_SOLOMON: u8 = 1;

/// Length of a core without its destinations, in bytes.
const CORE_FIXED_BYTES: usize = 95;

/// Length of one destination in a core, in bytes.
const CORE_DESTINATION_BYTES: usize = 40;

/// Length of what a stripe header adds to its core, in bytes.
const STRIPE_BYTES: usize = 73;

/// Longest stripe header, in bytes.
pub const HEADER_BYTES: usize = header_bytes(limits::DESTINATIONS);

/// Length of a stripe header of a parcel with this many destinations, in bytes.
pub const fn header_bytes(destinations: usize) -> usize {
    CORE_FIXED_BYTES + destinations * CORE_DESTINATION_BYTES + STRIPE_BYTES
}

/// How a parcel is coded: k data shards and m parity shards of at most `shard_bytes` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile {
    k: u8,
    m: u8,
    shard_bytes: u32,
}

impl Profile {
    /// Data shards of the coded profile.
    pub const CODED_K: u8 = 8;
    /// Shard length of the coded and the small profile, in bytes.
    pub const CODED_SHARD_BYTES: u32 = 64 * 1024;
    /// Longest stripe of a parcel whose length is known, in bytes, without its parity.
    pub const FITTING_STRIPE_BYTES: u32 = limits::STRIPE_BYTES as u32;
    /// Length of a shard above which each domain gets two of a stripe, in bytes: the second one is on its way while the first
    /// one is checked.
    pub const FITTING_LONG_SHARD_BYTES: u32 = 256 * 1024;

    /// A profile within the limits: k in 1 to 32, m in 0 to 32, shards of 1 to 524,288 bytes. Errors:
    /// [`WireError::Range`].
    pub fn new(k: u8, m: u8, shard_bytes: u32) -> Result<Self, WireError> {
        in_range(k.into(), 1, limits::DATA_SHARDS as u64, "core: data shards")?;
        in_range(m.into(), 0, limits::PARITY_SHARDS as u64, "core: parity shards")?;
        in_range(shard_bytes.into(), 1, limits::SHARD_BYTES as u64, "core: shard length")?;
        Ok(Self { k, m, shard_bytes })
    }

    /// Eight data shards of 64 KiB and m = ceil(8 / (domains - 1)) parity shards, so that the shards of any one domain can
    /// be lost. One domain cannot be lost at all: then m is 4, as over three, against single lost records.
    pub fn coded(domains: usize) -> Self {
        let others = if domains < 2 { 2 } else { domains - 1 };
        let m = usize::from(Self::CODED_K).div_ceil(others);
        Self { k: Self::CODED_K, m: u8::try_from(m).unwrap_or(Self::CODED_K), shard_bytes: Self::CODED_SHARD_BYTES }
    }

    /// For a parcel of known length: as safe against the loss of any one domain as [`Profile::coded`], and as cheap or cheaper, in
    /// as few records as its length needs: what a record costs brokers and nodes hardly depends on its length. Each domain gets
    /// one shard of a stripe; two, where that does not take more than eight data shards and they would else be longer than 256 KiB.
    /// Shards grow to 512 KiB and stripes to 1.25 MiB before there is a second stripe. Stripes are of one length, so that none is
    /// left with a few bytes.
    pub fn fitting(domains: usize, sealed_bytes: u64) -> Self {
        let others = if domains < 2 { 2 } else { domains - 1 };
        let most = usize::from(Self::CODED_K);
        let length = usize::try_from(sealed_bytes).unwrap_or(usize::MAX).max(1);
        let long = length.div_ceil(others) > Self::FITTING_LONG_SHARD_BYTES as usize;
        let each = if long && 2 * others <= most { 2 } else { 1 };
        let k = others.min(most).saturating_mul(each);
        let longest = limits::SHARD_BYTES.min(Self::FITTING_STRIPE_BYTES as usize / k);
        let stripes = length.div_ceil(k * longest);
        let shard_bytes = length.div_ceil(stripes).div_ceil(k).max(Self::CODED_SHARD_BYTES as usize);
        Self { k: k as u8, m: k.div_ceil(others) as u8, shard_bytes: shard_bytes as u32 }
    }

    /// For a parcel known to fit one shard: k = 1, m = 2, 64 KiB. The three shards are equal copies.
    pub const fn small() -> Self {
        Self { k: 1, m: 2, shard_bytes: Self::CODED_SHARD_BYTES }
    }

    /// For clusters that replicate themselves: k = 1, m = 0, 512 KiB.
    pub const fn replicated() -> Self {
        Self { k: 1, m: 0, shard_bytes: limits::SHARD_BYTES as u32 }
    }

    /// Data shards of a stripe, 1 to 32.
    pub fn k(self) -> usize {
        self.k.into()
    }

    /// Parity shards of a stripe, 0 to 32.
    pub fn m(self) -> usize {
        self.m.into()
    }

    /// All shards of a stripe, 1 to 64.
    pub fn n(self) -> usize {
        self.k() + self.m()
    }

    /// Longest shard, in bytes.
    pub fn shard_bytes(self) -> usize {
        self.shard_bytes as usize
    }

    /// Length of a full stripe, in bytes: k times the shard length.
    pub fn stripe_bytes(self) -> usize {
        self.k() * self.shard_bytes()
    }
}

/// One destination of a parcel, as its core names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreDestination {
    /// Which destination (covers its name and shard number).
    pub tag: DestinationTag,
    /// Under which of its keys K is wrapped.
    pub key: KeyId,
    /// The how manieth parcel of this epoch to this destination it is, from 0.
    pub sequence: u64,
}

/// C: what is equal in all stripes of a parcel, and what all its keys are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// The HPKE suite of every wrap in the envelope.
    pub suite: Suite,
    /// How it is coded.
    pub profile: Profile,
    /// Where it belongs.
    pub environment: EnvironmentId,
    /// Who signs its headers.
    pub sender: VerifyingKeyBytes,
    /// Which start of the sender's client made it.
    pub epoch: Epoch,
    /// Its id.
    pub parcel: ParcelId,
    /// Past this group time nobody needs it: the latest deadline of its transactions.
    pub expiry: Time,
    /// Where it goes: 1 to 16, ascending by tag, no duplicates.
    pub destinations: Vec<CoreDestination>,
}

impl Core {
    /// The bytes of C.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(header_bytes(self.destinations.len()));
        writer
            .put(&CORE_MAGIC)
            .u8(VERSION)
            .u8(self.suite.number())
            .u8(SIGNATURE_ED25519)
            .u8(CODEC_REED_SOLOMON)
            .u8(self.profile.k)
            .u8(self.profile.m)
            .u32(self.profile.shard_bytes)
            .put(&self.environment.0)
            .put(&self.sender.0)
            .put(&self.epoch.0)
            .put(&self.parcel.to_bytes())
            .u64(self.expiry.0)
            .u8(self.destinations.len() as u8);
        for destination in &self.destinations {
            writer.put(&destination.tag.0).put(&destination.key.0).u64(destination.sequence);
        }
        writer.finish()
    }

    /// Checks what the type alone does not: 1 to 16 destinations, ascending by tag without duplicates. Errors:
    /// [`WireError::Range`], [`WireError::Invalid`].
    pub fn check(&self) -> Result<(), WireError> {
        in_range(self.destinations.len() as u64, 1, limits::DESTINATIONS as u64, "core: destinations")?;
        if self.destinations.iter().zip(self.destinations.iter().skip(1)).any(|(one, next)| one.tag >= next.tag) {
            let expected = "destinations ascending by tag, without duplicates";
            return Err(WireError::Invalid { field: "core: destinations", expected });
        }
        Ok(())
    }

    /// Reads a core. Errors: [`WireError`], naming the field; [`WireError::Unknown`] for a version, suite, signature
    /// algorithm or codec of a later version.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.array::<4>("core: magic")? != CORE_MAGIC {
            return Err(WireError::Invalid { field: "core: magic", expected: "SCCO" });
        }
        known(reader.u8("core: version")?, VERSION, "core: version")?;
        let suite = reader.listed(Suite::from_number, "core: suite")?;
        known(reader.u8("core: signature algorithm")?, SIGNATURE_ED25519, "core: signature algorithm")?;
        known(reader.u8("core: codec")?, CODEC_REED_SOLOMON, "core: codec")?;
        let (k, m) = (reader.u8("core: data shards")?, reader.u8("core: parity shards")?);
        let profile = Profile::new(k, m, reader.u32("core: shard length")?)?;
        let environment = EnvironmentId(reader.array("core: environment")?);
        let sender = VerifyingKeyBytes(reader.array("core: sender")?);
        let epoch = Epoch(reader.array("core: epoch")?);
        let parcel = ParcelId::from_bytes(reader.array("core: parcel")?)
            .map_err(|_| WireError::Invalid { field: "core: parcel", expected: "a UUID of version 7" })?;
        let expiry = Time(reader.u64("core: expiry")?);
        let count = reader.u8("core: destinations")?;
        in_range(count.into(), 1, limits::DESTINATIONS as u64, "core: destinations")?;
        let mut destinations = Vec::with_capacity(count.into());
        for _ in 0..count {
            destinations.push(CoreDestination {
                tag: DestinationTag(reader.array("core: destination tag")?),
                key: KeyId(reader.array("core: destination key")?),
                sequence: reader.u64("core: sequence")?,
            });
        }
        let core = Self { suite, profile, environment, sender, epoch, parcel, expiry, destinations };
        core.check()?;
        Ok(core)
    }

    /// ctx = SHA-256(L("parcel") || C): what the parcel's keys are bound to.
    pub fn context(&self) -> [u8; 32] {
        sha2::Sha256::new().chain_update(label::PARCEL).chain_update(self.encode()).finalize().into()
    }

    /// This destination's part, if the parcel goes there.
    pub fn destination(&self, tag: &DestinationTag) -> Option<&CoreDestination> {
        self.destinations.iter().find(|destination| destination.tag == *tag)
    }

    /// How long after its parcel id's time it expires.
    pub fn life(&self) -> Duration {
        self.expiry.since(self.parcel.time())
    }
}

fn known(value: u8, only: u8, field: &'static str) -> Result<(), WireError> {
    if value == only { Ok(()) } else { Err(WireError::Unknown { field, value: value.into() }) }
}

/// The header of one stripe: signed by the sender, chained to the header before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeHeader {
    /// C.
    pub core: Core,
    /// Which stripe, from 0.
    pub stripe: u32,
    /// Whether it is the parcel's last.
    pub last: bool,
    /// Sealed bytes in it, before padding: k times the shard length, in the last stripe 1 to that.
    pub length: u32,
    /// The digest of the previous stripe's header; zeros for stripe 0.
    pub previous: Digest,
    /// The Merkle root over all n shards.
    pub root: Digest,
}

impl StripeHeader {
    /// The bytes that are signed and hashed.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Writer::default();
        bytes
            .put(&self.core.encode())
            .u32(self.stripe)
            .flag(self.last)
            .u32(self.length)
            .put(&self.previous.0)
            .put(&self.root.0);
        bytes.finish()
    }

    /// Reads a header. Errors: [`WireError`]; among them a stripe length that is not full though the stripe is not the
    /// last, and a previous digest other than zeros in stripe 0.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let core = Core::read(reader)?;
        let header = Self {
            core,
            stripe: reader.u32("header: stripe")?,
            last: reader.flag("header: last")?,
            length: reader.u32("header: stripe length")?,
            previous: Digest(reader.array("header: previous digest")?),
            root: Digest(reader.array("header: root")?),
        };
        let full = header.core.profile.stripe_bytes() as u64;
        let least = if header.last { 1 } else { full };
        in_range(header.length.into(), least, full, "header: stripe length")?;
        if header.stripe == 0 && header.previous != Digest([0; 32]) {
            return Err(WireError::Invalid { field: "header: previous digest", expected: "zeros in stripe 0" });
        }
        Ok(header)
    }

    /// Reads exactly one header. Errors: as [`StripeHeader::read`], and [`WireError::Trailing`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let header = Self::read(&mut reader)?;
        reader.finish("header")?;
        Ok(header)
    }

    /// Length of each shard of this stripe, in bytes: the stripe's length over k, rounded up.
    pub fn shard_bytes(&self) -> usize {
        (self.length as usize).div_ceil(self.core.profile.k())
    }
}

/// A header's digest: BLAKE3(L("header") || header). That of a parcel's last header is D.
pub fn digest(header: &[u8]) -> Digest {
    Digest(*blake3::Hasher::new().update(label::HEADER).update(header).finalize().as_bytes())
}

/// Signs a header: Ed25519 over L("stripe") || header.
pub fn sign(header: &[u8], key: &SecretKey) -> [u8; SIGNATURE_BYTES] {
    key.sign(label::STRIPE, header)
}

/// Verifies a header's signature. Errors: [`SignError::Signature`].
pub fn verify(header: &[u8], signature: &[u8; SIGNATURE_BYTES], sender: &PublicKey) -> Result<(), SignError> {
    sender.verify(label::STRIPE, header, signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core() -> Core {
        Core {
            suite: Suite::XWing,
            profile: Profile::coded(3),
            environment: EnvironmentId([1; 16]),
            sender: VerifyingKeyBytes([2; 32]),
            epoch: Epoch([3; 8]),
            parcel: ParcelId::from_parts(Time(1000), [4; 10]),
            expiry: Time(5000),
            destinations: vec![
                CoreDestination { tag: DestinationTag([5; 16]), key: KeyId([6; 16]), sequence: 7 },
                CoreDestination { tag: DestinationTag([8; 16]), key: KeyId([9; 16]), sequence: 10 },
            ],
        }
    }

    fn header() -> StripeHeader {
        let zeros = Digest([0; 32]);
        StripeHeader { core: core(), stripe: 0, last: true, length: 9, previous: zeros, root: Digest([9; 32]) }
    }

    #[test]
    fn a_header_reads_what_it_writes_and_has_the_lengths_of_the_format() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), 95 + 2 * 40 + 73);
        assert_eq!(StripeHeader::decode(&bytes), Ok(header()));
        assert_eq!(header().shard_bytes(), 2);
        assert_eq!(core().life(), Duration::from_secs(4));
    }

    #[test]
    fn what_is_out_of_order_or_range_is_refused() {
        let decode = |change: &dyn Fn(&mut StripeHeader)| {
            let mut header = header();
            change(&mut header);
            StripeHeader::decode(&header.encode())
        };
        assert!(decode(&|h| h.core.destinations.reverse()).is_err());
        assert!(decode(&|h| h.core.destinations = vec![h.core.destinations[0]; 2]).is_err());
        assert!(decode(&|h| h.core.destinations.clear()).is_err());
        assert!(decode(&|h| h.length = 0).is_err());
        assert!(decode(&|h| h.length = 8 * 65536 + 1).is_err());
        assert!(decode(&|h| h.last = false).is_err());
        assert!(decode(&|h| (h.last, h.length) = (false, 8 * 65536)).is_ok());
        assert!(decode(&|h| h.previous = Digest([1; 32])).is_err());
        assert!(decode(&|h| h.core.profile.k = 0).is_err());
        assert!(decode(&|h| h.core.profile.m = 33).is_err());
        assert!(decode(&|h| h.core.profile.shard_bytes = 512 * 1024 + 1).is_err());
    }

    #[test]
    fn unknown_values_are_told_apart_from_broken_ones() {
        for at in 4..8 {
            let mut bytes = header().encode();
            bytes[at] = 99;
            assert!(matches!(StripeHeader::decode(&bytes), Err(WireError::Unknown { value: 99, .. })), "{at}");
        }
    }

    #[test]
    fn more_domains_need_less_parity() {
        let parity: Vec<_> = [0, 1, 2, 3, 4, 5, 9, 100].into_iter().map(|b| Profile::coded(b).m()).collect();
        assert_eq!(parity, [4, 4, 8, 4, 3, 2, 1, 1]);
    }
}
