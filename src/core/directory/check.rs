//! What makes a directory whole: references, uniqueness, ranges; and the shape of HPKE public keys.
//!
//! Owns the refusals that need more than one entry. Must not parse.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{DestinationEntry, Directory, DirectoryError, Draft, KemKeyError, KeyState, NodeEntry, ReaderEntry, Span};
use crate::core::id::{DestinationName, Suite, VerifyingKeyBytes};
use crate::core::{limits, sign};

/// Length of an X25519 public key, and of the X25519 part at the end of an X-Wing key.
const X25519_BYTES: usize = 32;

/// The encodings of points of small order on Curve25519, bit 255 clear: 0, 1, the two of order 8, p - 1, p, p + 1.
pub(in crate::core) const SMALL_ORDER: [[u8; X25519_BYTES]; 7] = [
    [0; 32],
    with_first(1, 0, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    with_first(0xec, 0xff, 0x7f),
    with_first(0xed, 0xff, 0x7f),
    with_first(0xee, 0xff, 0x7f),
];

const fn with_first(first: u8, middle: u8, last: u8) -> [u8; X25519_BYTES] {
    let mut bytes = [middle; X25519_BYTES];
    bytes[0] = first;
    bytes[X25519_BYTES - 1] = last;
    bytes
}

/// How many bytes an HPKE public key of this suite has: 32, or 1,216 (ML-KEM-768's 1,184 and X25519's 32).
pub fn kem_key_bytes(suite: Suite) -> usize {
    match suite {
        Suite::X25519 => X25519_BYTES,
        Suite::XWing => 1184 + X25519_BYTES,
    }
}

/// Length of ML-KEM-768's coefficients, 12 bits each (FIPS 203, ByteEncode12); its seed follows them.
const ML_KEM_COEFFICIENT_BYTES: usize = 1152;

/// ML-KEM's q: coefficients are below it.
const ML_KEM_Q: u16 = 3329;

/// Checks an HPKE public key: its length, that its X25519 part is none of the seven encodings of small order once bit 255
/// is cleared (design, section 3.2), and that its ML-KEM part is canonical (FIPS 203, section 7.2, modulus check). Errors:
/// [`KemKeyError`].
pub fn check_kem_key(suite: Suite, public: &[u8]) -> Result<(), KemKeyError> {
    check_kem_shape(suite, public)?;
    check_kem_canonical(suite, public)
}

/// What the first version of log entries checked of an HPKE public key: its length and its X25519 part.
pub(super) fn check_kem_shape(suite: Suite, public: &[u8]) -> Result<(), KemKeyError> {
    let expected = kem_key_bytes(suite);
    if public.len() != expected {
        return Err(KemKeyError::Length { suite, expected, given: public.len() });
    }
    if has_small_order_part(public) {
        return Err(KemKeyError::SmallOrder);
    }
    Ok(())
}

fn check_kem_canonical(suite: Suite, public: &[u8]) -> Result<(), KemKeyError> {
    let canonical = match suite {
        Suite::X25519 => true,
        Suite::XWing => public.chunks_exact(3).take(ML_KEM_COEFFICIENT_BYTES / 3).all(is_canonical),
    };
    if canonical { Ok(()) } else { Err(KemKeyError::NotCanonical) }
}

/// Whether the two coefficients in these three bytes are below q.
fn is_canonical(three: &[u8]) -> bool {
    let &[low, middle, high] = three else { return false };
    let first = u16::from(low) | u16::from(middle & 0x0f) << 8;
    let second = u16::from(middle >> 4) | u16::from(high) << 4;
    first < ML_KEM_Q && second < ML_KEM_Q
}

/// Whether the last 32 bytes of a public or encapsulated key, which in both suites are X25519's, are one of the seven encodings
/// of small order once bit 255, which RFC 7748 ignores, is cleared.
pub fn has_small_order_part(key: &[u8]) -> bool {
    let Some(mut point) = key.last_chunk::<X25519_BYTES>().copied() else { return false };
    point[X25519_BYTES - 1] &= 0x7f;
    SMALL_ORDER.contains(&point)
}

/// That the HPKE keys of a directory are canonical.
pub(super) fn canonical(directory: &Directory) -> Result<(), DirectoryError> {
    let check = |suite, public: &[u8], field: String| {
        check_kem_canonical(suite, public).map_err(|problem| DirectoryError::WeakKemKey { field, problem })
    };
    for node in directory.nodes.values() {
        check(Suite::XWing, &node.hpke, format!("node {}: hpke", node.name))?;
    }
    for reader in directory.readers.values() {
        check(Suite::XWing, &reader.hpke, format!("reader {}: hpke", reader.name))?;
    }
    for entry in directory.destinations.values() {
        for (at, key) in entry.keys.iter().enumerate() {
            check(key.suite, &key.public, format!("destination {}: key {}: public", entry.name, at + 1))?;
        }
    }
    Ok(())
}

/// That no key is in the draft twice; it may lack what else is needed.
pub(super) fn keys_differ(draft: &Draft) -> Result<(), DirectoryError> {
    let mut keys = Owners::default();
    for node in draft.nodes.values() {
        keys.add_node(node)?;
    }
    for sender in draft.senders.values() {
        keys.add_signing(&sender.signing.bytes(), format!("sender {}: signing", sender.name))?;
    }
    for reader in draft.readers.values() {
        keys.add_reader(reader)?;
    }
    draft.destinations.values().try_for_each(|entry| keys.add_destination(entry))
}

/// Everything that needs more than one entry, or the operator's key.
pub(super) fn whole(draft: &Draft, operator: &sign::PublicKey) -> Result<(), DirectoryError> {
    span("grace".to_owned(), draft.grace, Duration::ZERO)?;
    let mut keys = Owners::default();
    keys.add(operator.bytes().0.to_vec(), "operator key".to_owned())?;
    for node in draft.nodes.values() {
        let field = |what: &str| format!("node {}: {what}", node.name);
        address(field("address"), &node.address)?;
        keys.add_node(node)?;
    }
    addresses_differ(draft)?;
    for sender in draft.senders.values() {
        let field = |what: &str| format!("sender {}: {what}", sender.name);
        keys.add_signing(&sender.signing.bytes(), field("signing"))?;
        known(draft, sender.destinations.iter(), field("destinations"))?;
    }
    for reader in draft.readers.values() {
        let field = |what: &str| format!("reader {}: {what}", reader.name);
        keys.add_reader(reader)?;
        known(draft, reader.destinations.iter(), field("destinations"))?;
    }
    for entry in draft.destinations.values() {
        destination(draft, entry, &mut keys)?;
    }
    Ok(())
}

fn destination(draft: &Draft, entry: &DestinationEntry, keys: &mut Owners) -> Result<(), DirectoryError> {
    let field = |what: &str| format!("destination {}: {what}", entry.name);
    if entry.shard != 0 {
        return Err(invalid(field("shard"), format!("{} is reserved for a later version: use 0", entry.shard)));
    }
    if !(1..=limits::VOTERS).contains(&entry.nodes.len()) {
        let problem = format!("{} nodes: name 1 to {}", entry.nodes.len(), limits::VOTERS);
        return Err(invalid(field("nodes"), problem));
    }
    if let Some(name) = entry.nodes.iter().find(|&name| !draft.nodes.contains_key(name)) {
        return Err(DirectoryError::UnknownName { field: field("nodes"), kind: "node", name: name.to_string() });
    }
    if entry.keys.len() > limits::KEYS_PER_DESTINATION {
        let most = limits::KEYS_PER_DESTINATION;
        return Err(invalid(field("key"), format!("{} keys: keep at most {most}", entry.keys.len())));
    }
    keys.add_destination(entry)?;
    for suite in [Suite::X25519, Suite::XWing] {
        let current = entry.keys.iter().filter(|key| key.suite == suite && key.state == KeyState::Current);
        if current.count() > 1 {
            let problem = format!("several current keys of suite {suite}: retire all but one");
            return Err(invalid(field("key"), problem));
        }
    }
    let usable = |key: &&super::DestinationKey| key.state == KeyState::Current && key.suite >= entry.minimum_suite;
    if entry.keys.iter().find(usable).is_none() {
        let problem = format!(
            "no current key of suite {} or above: add one with `sealcast keys generate destination`",
            entry.minimum_suite
        );
        return Err(invalid(field("key"), problem));
    }
    span(field("max_life"), entry.max_life, Duration::from_secs(1))?;
    span(field("idempotency_window"), entry.idempotency_window, Duration::ZERO)?;
    span(field("retention"), entry.retention, Duration::from_secs(1))?;
    if entry.retention < entry.max_life {
        let problem = format!(
            "{} is shorter than max_life, {}: a fate must outlive its deadline",
            Span(entry.retention),
            Span(entry.max_life)
        );
        return Err(invalid(field("retention"), problem));
    }
    Ok(())
}

/// Every key in the directory has one owner and one use.
#[derive(Default)]
struct Owners(BTreeMap<Vec<u8>, String>);

impl Owners {
    fn add_node(&mut self, node: &NodeEntry) -> Result<(), DirectoryError> {
        let field = |what: &str| format!("node {}: {what}", node.name);
        self.add_signing(&node.signing.bytes(), field("signing"))?;
        self.add_signing(&node.tls, field("tls"))?;
        self.add(node.hpke.to_vec(), field("hpke"))
    }

    fn add_reader(&mut self, reader: &ReaderEntry) -> Result<(), DirectoryError> {
        let field = |what: &str| format!("reader {}: {what}", reader.name);
        self.add_signing(&reader.signing.bytes(), field("signing"))?;
        self.add(reader.hpke.to_vec(), field("hpke"))
    }

    fn add_destination(&mut self, entry: &DestinationEntry) -> Result<(), DirectoryError> {
        for (at, key) in entry.keys.iter().enumerate() {
            self.add(key.public.to_vec(), format!("destination {}: key {}: public", entry.name, at + 1))?;
        }
        Ok(())
    }

    fn add_signing(&mut self, key: &VerifyingKeyBytes, field: String) -> Result<(), DirectoryError> {
        self.add(key.0.to_vec(), field)
    }

    fn add(&mut self, key: Vec<u8>, field: String) -> Result<(), DirectoryError> {
        if let Some(first) = self.0.get(&key) {
            let value: String = data_encoding::HEXLOWER.encode(&key).chars().take(16).collect();
            return Err(DirectoryError::Duplicate {
                field,
                value: format!("the key {value}..."),
                first: first.split_once(": ").map_or(first.clone(), |(who, what)| format!("{who} ({what})")),
            });
        }
        self.0.insert(key, field);
        Ok(())
    }
}

fn known<'a>(
    draft: &Draft,
    mut names: impl Iterator<Item = &'a DestinationName>,
    field: String,
) -> Result<(), DirectoryError> {
    match names.find(|&name| !draft.destinations.contains_key(name)) {
        Some(name) => Err(DirectoryError::UnknownName { field, kind: "destination", name: name.to_string() }),
        None => Ok(()),
    }
}

fn addresses_differ(draft: &Draft) -> Result<(), DirectoryError> {
    let mut seen = BTreeMap::new();
    for node in draft.nodes.values() {
        if let Some(first) = seen.insert(node.address.as_str(), &node.name) {
            return Err(DirectoryError::Duplicate {
                field: format!("node {}: address", node.name),
                value: node.address.clone(),
                first: format!("node {first}"),
            });
        }
    }
    Ok(())
}

fn address(field: String, address: &str) -> Result<(), DirectoryError> {
    let fits = address.len() <= limits::ADDRESS_BYTES
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host_fits = match inside {
                Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
                }
            };
            host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if fits {
        return Ok(());
    }
    let given: String = address.chars().take(64).collect();
    Err(invalid(field, format!("{given:?}: expected HOST:PORT, for example node-a.example.org:7401 or [::1]:7401")))
}

fn span(field: String, given: Duration, lowest: Duration) -> Result<(), DirectoryError> {
    let highest = Duration::from_millis(limits::LONGEST_SPAN_MILLIS);
    if (lowest..=highest).contains(&given) {
        return Ok(());
    }
    let problem = format!("{} is outside {} to {}", Span(given), Span(lowest), Span(highest));
    Err(invalid(field, problem))
}

fn invalid(field: String, problem: String) -> DirectoryError {
    DirectoryError::Invalid { field, problem }
}
