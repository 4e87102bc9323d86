//! A small directory and parcels for tests of the store and of consensus.

#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use sealcast::core::decide::{Commit, DirectoryOp, Entry, Manifest, ManifestItem, Op};
use sealcast::core::directory::{DestinationEntry, DestinationKey, Draft, NodeEntry, SenderEntry};
use sealcast::core::id::{
    DestinationName, Digest, EnvironmentId, Epoch, Incarnation, KeyTag, NodeName, ParcelId, PayloadTag, SenderName,
    Suite, Time, TransactionId,
};
use sealcast::core::sign::SecretKey;
use sealcast::seams::{Disk, Seams, SeededRandomness};
use sealcast::store::StoreError;
use sealcast::store::group::{GroupStore, NewBody, NewParcel, StoreOptions};

/// When everything in these tests happens.
pub const NOW: Time = Time(1_800_000_000_000);

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub fn orders() -> DestinationName {
    DestinationName::new("orders").unwrap()
}

pub fn web() -> SenderName {
    SenderName::new("web").unwrap()
}

/// Three nodes a, b and c; a destination `orders` on all of them; a sender `web`.
pub fn directory_op() -> DirectoryOp {
    let environment = EnvironmentId([5; 16]);
    let secret = |number: u8| SecretKey::from_seed(&[number; 32]);
    let mut draft = Draft::new(environment, "test".parse().unwrap(), Time(4_102_444_800_000));
    for (at, name) in (10u8..).step_by(2).zip(["a", "b", "c"]) {
        draft.add_node(NodeEntry {
            name: node(name),
            address: format!("127.0.0.1:{}", 7400 + u16::from(at)),
            signing: secret(at).public(),
            tls: secret(at + 1).public().bytes(),
            hpke: Bytes::from([vec![0; 1184], vec![at; 32]].concat()),
        });
    }
    let keys = vec![DestinationKey::current(Suite::X25519, Bytes::from_static(&[9; 32])).unwrap()];
    draft.add_destination(DestinationEntry::new(environment, orders(), ["a", "b", "c"].map(node), keys));
    draft.add_sender(SenderEntry { name: web(), signing: secret(30).public(), destinations: [orders()].into() });
    let operator = secret(1);
    DirectoryOp { operator: operator.public().bytes(), bytes: draft.sign(&operator).unwrap().into() }
}

/// Seams over a disk, with randomness from a seed.
pub fn seams(disk: impl Disk, seed: u64) -> Seams {
    Seams {
        disk: std::sync::Arc::new(disk),
        randomness: std::sync::Arc::new(SeededRandomness::new(seed)),
        ..Seams::real()
    }
}

pub fn options() -> StoreOptions {
    StoreOptions { folder: PathBuf::from("/node/orders"), destination: orders() }
}

/// A body of this many bytes, all different for different numbers.
pub fn body(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_be_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

pub fn transaction(number: u64) -> TransactionId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    TransactionId::from_parts(NOW, random)
}

/// A parcel with one transaction for each length of `bodies`; ids and D follow from `number`.
pub fn parcel(store: &GroupStore, number: u64, bodies: &[usize], key: Option<u8>) -> NewParcel {
    try_parcel(store, number, bodies, key).unwrap()
}

/// The same over a disk that may fail.
pub fn try_parcel(store: &GroupStore, number: u64, bodies: &[usize], key: Option<u8>) -> Result<NewParcel, StoreError> {
    let mut items = Vec::new();
    let mut new = Vec::new();
    for (index, length) in (0u32..).zip(bodies) {
        let bytes = body(number * 1000 + u64::from(index), *length);
        let mut writer = store.body_writer();
        for part in bytes.chunks(40_000) {
            writer.push(part)?;
        }
        let body = writer.finish()?;
        items.push(ManifestItem {
            index,
            transaction: transaction(number * 1000 + u64::from(index)),
            deadline: Time(NOW.0 + 60_000),
            payload_bytes: bytes.len() as u64,
            ciphertext_bytes: body.length,
            ciphertext_digest: body.digest,
            tx_commit: [7; 32],
            payload_tag: PayloadTag(*blake3::hash(&bytes).as_bytes()),
            key_tag: key.map(|key| KeyTag([key; 16])),
            idempotency_tag: None,
            predecessor: None,
            expected_version: None,
        });
        new.push(NewBody { index, body, wrapped_key: vec![3; 72] });
    }
    let manifest = Manifest {
        parcel: ParcelId::from_parts(NOW, [number as u8; 10]),
        digest: Digest(*blake3::hash(&number.to_be_bytes()).as_bytes()),
        sender: web(),
        epoch: Epoch([1; 8]),
        expiry: Time(NOW.0 + 120_000),
        items,
    };
    Ok(NewParcel { manifest, first: None, staged: NOW, envelope: Bytes::from_static(b"envelope"), bodies: new })
}

/// The entry that commits a whole parcel.
pub fn commit(manifest: &Manifest, time: Time) -> Entry {
    let reporters: BTreeMap<_, _> = [(node("a"), Incarnation([1; 16])), (node("b"), Incarnation([2; 16]))].into();
    Entry {
        time,
        ops: vec![Op::Commit(Commit {
            parcel: manifest.parcel,
            digest: manifest.digest,
            sender: manifest.sender.clone(),
            epoch: manifest.epoch,
            expiry: manifest.expiry,
            manifest_digest: manifest.manifest_digest(),
            reporters,
            items: manifest.items.clone(),
        })],
    }
}
