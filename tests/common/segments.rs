//! A directory, parcels and records for the tests of splitting and gathering. Keys are those of fixed seeds.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use bytes::Bytes;
use sealcast::core::directory::{
    DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, SenderEntry, destination_tag,
};
use sealcast::core::id::{
    DestinationTag, Digest, EnvironmentId, Epoch, KeyId, ParcelId, Suite, Time, VerifyingKeyBytes,
};
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{self, Core, CoreDestination, Profile, StripeHeader};
use sealcast::core::split::stripe::{Splitter, Stripe};
use sealcast::core::split::{merkle, segment};

pub const ENVIRONMENT: EnvironmentId = EnvironmentId([5; 16]);
/// When the parcels are made.
pub const NOW: Time = Time(1_800_000_000_000);
/// When they expire.
pub const EXPIRY: Time = Time(NOW.0 + 3_600_000);

/// Any key of this number.
pub fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// The sender "web".
pub fn web() -> SecretKey {
    secret(30)
}

/// The sender "shop".
pub fn shop() -> SecretKey {
    secret(31)
}

/// The tag of the destination "orders".
pub fn orders() -> DestinationTag {
    destination_tag(ENVIRONMENT, &"orders".parse().unwrap(), 0)
}

/// The current key of "orders" in suite 2.
pub fn key() -> DestinationKey {
    DestinationKey::current(Suite::XWing, vec![2; 1216].into()).unwrap()
}

/// The current key of "orders" in suite 1.
pub fn key_suite_1() -> DestinationKey {
    DestinationKey::current(Suite::X25519, vec![9; 32].into()).unwrap()
}

/// A directory draft: three nodes, the destination "orders", the senders "web" and "shop".
pub fn draft() -> Draft {
    let mut draft = Draft::new(ENVIRONMENT, "test".parse().unwrap(), Time(4_102_444_800_000));
    for (at, node) in (10u8..).step_by(2).zip(["a", "b", "c"]) {
        draft.add_node(NodeEntry {
            name: node.parse().unwrap(),
            address: format!("127.0.0.1:{}", 7400 + u16::from(at)),
            signing: secret(at).public(),
            tls: secret(at + 1).public().bytes(),
            hpke: [vec![0; 1184], vec![at; 32]].concat().into(),
        });
    }
    let nodes = ["a", "b", "c"].map(|node| node.parse().unwrap());
    let keys = vec![key_suite_1(), key()];
    draft.add_destination(DestinationEntry::new(ENVIRONMENT, "orders".parse().unwrap(), nodes, keys));
    for (name, key) in [("web", web()), ("shop", shop())] {
        let destinations = BTreeSet::from(["orders".parse().unwrap()]);
        draft.add_sender(SenderEntry { name: name.parse().unwrap(), signing: key.public(), destinations });
    }
    draft
}

/// The draft, signed and verified.
pub fn sign(draft: &Draft) -> Directory {
    Directory::verify(&draft.sign(&secret(1)).unwrap(), &secret(1).public(), 0).unwrap()
}

pub fn directory() -> Directory {
    sign(&draft())
}

/// A core of a parcel of this sender to "orders".
pub fn core(sender: &SecretKey, parcel: u8, profile: Profile) -> Core {
    Core {
        suite: Suite::XWing,
        profile,
        environment: ENVIRONMENT,
        sender: sender.public().bytes(),
        epoch: Epoch([1; 8]),
        parcel: ParcelId::from_parts(NOW, [parcel; 10]),
        expiry: EXPIRY,
        destinations: vec![CoreDestination { tag: orders(), key: key().id, sequence: parcel.into() }],
    }
}

/// Splits a parcel's sealed bytes, pushed in one piece.
pub fn split(core: Core, key: &SecretKey, sealed: &[u8]) -> Vec<Stripe> {
    let mut splitter = Splitter::new(core, key.clone()).unwrap();
    let mut stripes = splitter.push(sealed).unwrap();
    stripes.push(splitter.finish().unwrap());
    stripes
}

/// Bytes that differ from place to place.
pub fn sealed(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Records of a stripe over any shards at all, correctly proven and signed: what a sender that breaks the rules can make.
pub fn forge(mut header: StripeHeader, key: &SecretKey, shards: &[Vec<u8>]) -> Vec<Bytes> {
    let leaves: Vec<Digest> = (0..).zip(shards).map(|(index, shard)| merkle::leaf(index, shard)).collect();
    let (root, proofs) = merkle::proofs(&leaves).unwrap();
    header.root = root;
    let bytes = header.encode();
    let signature = header::sign(&bytes, key);
    (0..)
        .zip(shards.iter().zip(&proofs))
        .map(|(index, (shard, proof))| segment::encode(&bytes, &signature, index, proof, shard).into())
        .collect()
}

pub const ZEROS: Digest = Digest([0; 32]);

pub fn some_key_id(byte: u8) -> KeyId {
    KeyId([byte; 16])
}

pub fn bytes_of(key: &SecretKey) -> VerifyingKeyBytes {
    key.public().bytes()
}
