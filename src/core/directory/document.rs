//! The directory's TOML: its fields as they stand in the file, and the way to entries and back.
//!
//! Owns the file's shape and every check that one entry allows alone. What needs several entries is in
//! [`super::check`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::span::{Span, read_time, write_time};
use super::{
    DestinationEntry, DestinationKey, DirectoryError, Draft, KeyState, NodeEntry, ReaderEntry, SenderEntry,
    check::check_kem_shape, destination_tag, key_id,
};
use crate::core::id::{
    DestinationName, DestinationTag, EnvironmentId, EnvironmentName, KeyId, NodeName, ReaderName, SenderName, Suite,
    VerifyingKeyBytes,
};
use crate::core::sign;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    environment: EnvironmentId,
    name: EnvironmentName,
    valid_until: String,
    grace: Span,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    node: Vec<Node>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    destination: Vec<Destination>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sender: Vec<Sender>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reader: Vec<Reader>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: NodeName,
    address: String,
    signing: VerifyingKeyBytes,
    tls: VerifyingKeyBytes,
    hpke: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    name: DestinationName,
    shard: u32,
    tag: DestinationTag,
    nodes: Vec<NodeName>,
    minimum_suite: Suite,
    max_life: Span,
    idempotency_window: Span,
    retention: Span,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    id: KeyId,
    suite: Suite,
    state: KeyState,
    public: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sender {
    name: SenderName,
    signing: VerifyingKeyBytes,
    destinations: Vec<DestinationName>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reader {
    name: ReaderName,
    signing: VerifyingKeyBytes,
    hpke: String,
    destinations: Vec<DestinationName>,
}

/// Reads the TOML of a directory or draft.
pub(super) fn read(text: &str) -> Result<Draft, DirectoryError> {
    let document: Document = toml::from_str(text)
        .map_err(|error| DirectoryError::Syntax { message: error.to_string().trim_end().to_owned() })?;
    let valid_until = read_time(&document.valid_until).map_err(|error| invalid("valid_until", &error.to_string()))?;
    let environment = document.environment;
    Ok(Draft {
        version: document.version,
        environment,
        name: document.name,
        valid_until,
        grace: document.grace.0,
        nodes: unique(document.node, "node", |node| Ok((node.name.clone(), read_node(node)?)))?,
        destinations: unique(document.destination, "destination", |entry| {
            Ok((entry.name.clone(), read_destination(environment, entry)?))
        })?,
        senders: unique(document.sender, "sender", |entry| {
            let field = |what: &str| format!("sender {}: {what}", entry.name);
            let signing = signing_key(&entry.signing, field("signing"))?;
            let destinations = set(entry.destinations, &field("destinations"))?;
            Ok((entry.name.clone(), SenderEntry { name: entry.name, signing, destinations }))
        })?,
        readers: unique(document.reader, "reader", |entry| {
            let field = |what: &str| format!("reader {}: {what}", entry.name);
            let signing = signing_key(&entry.signing, field("signing"))?;
            let hpke = kem_key(Suite::XWing, &entry.hpke, field("hpke"))?;
            let destinations = set(entry.destinations, &field("destinations"))?;
            Ok((entry.name.clone(), ReaderEntry { name: entry.name, signing, hpke, destinations }))
        })?,
    })
}

fn read_node(node: Node) -> Result<NodeEntry, DirectoryError> {
    let field = |what: &str| format!("node {}: {what}", node.name);
    Ok(NodeEntry {
        signing: signing_key(&node.signing, field("signing"))?,
        tls: signing_key(&node.tls, field("tls"))?.bytes(),
        hpke: kem_key(Suite::XWing, &node.hpke, field("hpke"))?,
        address: node.address,
        name: node.name,
    })
}

fn read_destination(environment: EnvironmentId, entry: Destination) -> Result<DestinationEntry, DirectoryError> {
    let field = |what: &str| format!("destination {}: {what}", entry.name);
    let tag = destination_tag(environment, &entry.name, entry.shard);
    if entry.tag != tag {
        return Err(mismatch(field("tag"), entry.tag, tag));
    }
    let mut keys = Vec::with_capacity(entry.key.len());
    for (at, key) in entry.key.into_iter().enumerate() {
        let public = kem_key(key.suite, &key.public, field(&format!("key {}: public", at + 1)))?;
        let id = key_id(key.suite, &public);
        if key.id != id {
            return Err(mismatch(field(&format!("key {}: id", at + 1)), key.id, id));
        }
        keys.push(DestinationKey { id, suite: key.suite, public, state: key.state });
    }
    Ok(DestinationEntry {
        shard: entry.shard,
        tag,
        nodes: set(entry.nodes, &field("nodes"))?.into_iter().collect(),
        keys,
        minimum_suite: entry.minimum_suite,
        max_life: entry.max_life.0,
        idempotency_window: entry.idempotency_window.0,
        retention: entry.retention.0,
        name: entry.name,
    })
}

/// Writes the TOML: entries ascending by name, so equal drafts give equal bytes.
pub(super) fn write(draft: &Draft) -> Result<String, DirectoryError> {
    let document = Document {
        version: draft.version,
        environment: draft.environment,
        name: draft.name.clone(),
        valid_until: write_time(draft.valid_until),
        grace: Span(draft.grace),
        node: draft
            .nodes
            .values()
            .map(|node| Node {
                name: node.name.clone(),
                address: node.address.clone(),
                signing: node.signing.bytes(),
                tls: node.tls,
                hpke: HEXLOWER.encode(&node.hpke),
            })
            .collect(),
        destination: draft.destinations.values().map(write_destination).collect(),
        sender: draft
            .senders
            .values()
            .map(|entry| Sender {
                name: entry.name.clone(),
                signing: entry.signing.bytes(),
                destinations: entry.destinations.iter().cloned().collect(),
            })
            .collect(),
        reader: draft
            .readers
            .values()
            .map(|entry| Reader {
                name: entry.name.clone(),
                signing: entry.signing.bytes(),
                hpke: HEXLOWER.encode(&entry.hpke),
                destinations: entry.destinations.iter().cloned().collect(),
            })
            .collect(),
    };
    toml::to_string(&document).map_err(|error| DirectoryError::Syntax { message: error.to_string() })
}

fn write_destination(entry: &DestinationEntry) -> Destination {
    let nodes: BTreeSet<_> = entry.nodes.iter().cloned().collect();
    Destination {
        name: entry.name.clone(),
        shard: entry.shard,
        tag: entry.tag,
        nodes: nodes.into_iter().collect(),
        minimum_suite: entry.minimum_suite,
        max_life: Span(entry.max_life),
        idempotency_window: Span(entry.idempotency_window),
        retention: Span(entry.retention),
        key: entry
            .keys
            .iter()
            .map(|key| Key { id: key.id, suite: key.suite, state: key.state, public: HEXLOWER.encode(&key.public) })
            .collect(),
    }
}

/// A list of entries as a map; a name that repeats is refused.
fn unique<T, N: Ord + std::fmt::Display, E>(
    entries: Vec<T>,
    kind: &str,
    mut read: impl FnMut(T) -> Result<(N, E), DirectoryError>,
) -> Result<BTreeMap<N, E>, DirectoryError> {
    let mut map = BTreeMap::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let (name, entry) = read(entry)?;
        if map.contains_key(&name) {
            return Err(DirectoryError::Duplicate {
                field: format!("{kind} {}: name", at + 1),
                value: name.to_string(),
                first: format!("an earlier {kind}"),
            });
        }
        map.insert(name, entry);
    }
    Ok(map)
}

/// A list of names as a set; a name that repeats is refused.
fn set<N: Ord + std::fmt::Display>(names: Vec<N>, field: &str) -> Result<BTreeSet<N>, DirectoryError> {
    let mut set = BTreeSet::new();
    for name in names {
        if set.contains(&name) {
            return Err(DirectoryError::Duplicate {
                field: field.to_owned(),
                value: name.to_string(),
                first: "an earlier item of this list".to_owned(),
            });
        }
        set.insert(name);
    }
    Ok(set)
}

fn signing_key(bytes: &VerifyingKeyBytes, field: String) -> Result<sign::PublicKey, DirectoryError> {
    sign::PublicKey::check(bytes).map_err(|cause| DirectoryError::WeakKey { field, cause })
}

fn kem_key(suite: Suite, digits: &str, field: String) -> Result<Bytes, DirectoryError> {
    let Ok(public) = HEXLOWER.decode(digits.as_bytes()) else {
        return Err(invalid(&field, "expected lower-case hexadecimal digits, two for each byte"));
    };
    check_kem_shape(suite, &public).map_err(|problem| DirectoryError::WeakKemKey { field, problem })?;
    Ok(public.into())
}

fn mismatch(field: String, given: impl ToString, expected: impl ToString) -> DirectoryError {
    DirectoryError::Mismatch { field, given: given.to_string(), expected: expected.to_string() }
}

fn invalid(field: &str, problem: &str) -> DirectoryError {
    DirectoryError::Invalid { field: field.to_owned(), problem: problem.to_owned() }
}
