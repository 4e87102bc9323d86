//! What `sealcast directory add` and `remove` do to a draft.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Add, Kind, names, wrong};
use crate::cli::CliError;
use crate::cli::keys::read_public;
use crate::config::environment::{New, Serving};
use crate::core::directory::{
    DestinationEntry, DestinationKey, Draft, KeyState, NodeEntry, ReaderEntry, SenderEntry, check_kem_key,
};
use crate::core::id::{DestinationName, EnvironmentId, NodeName, ReaderName, SenderName, Suite, VerifyingKeyBytes};
use crate::core::sign::PublicKey;
use crate::keys::{KeyRing, NodeKeys, PublicKeys, ReaderKey, SenderKey};
use crate::seams::Seams;

/// Adds an entry. What is there and differs is replaced only when that is meant; a destination's settings just change.
/// Keys that are neither given nor there are made, when `makes` says how; then gives them.
pub(super) fn add(
    draft: &mut Draft,
    entry: Add,
    replace: bool,
    makes: Option<&Seams>,
) -> Result<Option<New>, CliError> {
    let mut made = None;
    match entry {
        Add::Node { name, address, public } => {
            let there = draft.nodes.get(&name);
            let entry = match (public, there, makes) {
                (Some(public), ..) => match read_public(&public)? {
                    PublicKeys::Node { signing, tls, hpke } => {
                        check_kem_key(Suite::XWing, &hpke).map_err(|error| wrong(&public, error))?;
                        let (signing, tls) = (checked(&public, &signing)?, checked(&public, &tls)?.bytes());
                        NodeEntry { name, address, signing, tls, hpke }
                    }
                    other => return Err(wrong_kind(&public, &other, "node")),
                },
                (None, Some(there), _) => NodeEntry { address, ..there.clone() },
                (None, None, Some(seams)) => {
                    let keys = NodeKeys::generate(&*seams.randomness)?;
                    let entry = keys.entry(name.clone(), address);
                    made = Some(New::Node(name, Box::new(keys), Serving::default()));
                    entry
                }
                (None, None, None) => return Err(no_key("node", &name)),
            };
            let at = |it: &NodeEntry| format!("at {}, signing {}", it.address, it.signing.bytes());
            check_replaced("node", &entry.name, there.filter(|there| **there != entry).map(at), replace)?;
            draft.add_node(entry);
        }
        Add::Sender { name, public, suite, destinations } => {
            let destinations = known(draft, destinations)?;
            let there = draft.senders.get(&name);
            let entry = match (public, there, makes) {
                (Some(public), ..) => match read_public(&public)? {
                    PublicKeys::Sender { signing } => {
                        SenderEntry { name, signing: checked(&public, &signing)?, destinations }
                    }
                    other => return Err(wrong_kind(&public, &other, "sender")),
                },
                (None, Some(there), _) => SenderEntry { destinations, ..there.clone() },
                (None, None, Some(seams)) => {
                    let key = SenderKey::generate(&*seams.randomness)?;
                    let entry = key.entry(name.clone(), destinations);
                    made = Some(New::Sender(name, key, suite));
                    entry
                }
                (None, None, None) => return Err(no_key("sender", &name)),
            };
            let sends =
                |it: &SenderEntry| format!("signing {}, it sends to {}", it.signing.bytes(), names(&it.destinations));
            check_replaced("sender", &entry.name, there.filter(|there| **there != entry).map(sends), replace)?;
            draft.add_sender(entry);
        }
        Add::Reader { name, public, destinations } => {
            let destinations = known(draft, destinations)?;
            let there = draft.readers.get(&name);
            let entry = match (public, there, makes) {
                (Some(public), ..) => match read_public(&public)? {
                    PublicKeys::Reader { signing, hpke } => {
                        check_kem_key(Suite::XWing, &hpke).map_err(|error| wrong(&public, error))?;
                        ReaderEntry { name, signing: checked(&public, &signing)?, hpke, destinations }
                    }
                    other => return Err(wrong_kind(&public, &other, "reader")),
                },
                (None, Some(there), _) => ReaderEntry { destinations, ..there.clone() },
                (None, None, Some(seams)) => {
                    let key = ReaderKey::generate(&*seams.randomness)?;
                    let entry = key.entry(name.clone(), destinations);
                    made = Some(New::Reader(name, key));
                    entry
                }
                (None, None, None) => return Err(no_key("reader", &name)),
            };
            let reads =
                |it: &ReaderEntry| format!("signing {}, it reads {}", it.signing.bytes(), names(&it.destinations));
            check_replaced("reader", &entry.name, there.filter(|there| **there != entry).map(reads), replace)?;
            draft.add_reader(entry);
        }
        Add::Destination {
            name,
            public,
            nodes,
            senders,
            readers,
            minimum_suite,
            max_life,
            idempotency_window,
            retention,
        } => {
            let mut entry = match draft.destinations.get(&name) {
                Some(there) => there.clone(),
                None => {
                    let voters = draft.nodes.keys().cloned();
                    DestinationEntry::new(draft.environment, name.clone(), voters, Vec::new())
                }
            };
            if !nodes.is_empty() {
                entry.nodes = DestinationEntry::new(draft.environment, name.clone(), nodes, Vec::new()).nodes;
            }
            if let Some(public) = public {
                entry.keys = merged(&entry, &public, draft.environment)?;
            } else if let (Some(seams), true) = (makes, entry.keys.is_empty()) {
                let suites = [Suite::X25519, Suite::XWing];
                let ring = KeyRing::generate(draft.environment, name.clone(), &suites, &*seams.randomness)?;
                entry.keys = ring.public_keys();
                made = Some(New::Destination(Box::new(ring)));
            }
            entry.minimum_suite = minimum_suite.unwrap_or(entry.minimum_suite);
            entry.max_life = max_life.map_or(entry.max_life, |span| span.0);
            entry.idempotency_window = idempotency_window.map_or(entry.idempotency_window, |span| span.0);
            entry.retention = retention.map_or(entry.retention, |span| span.0);
            draft.add_destination(entry);
            for sender in senders {
                let entry = draft.senders.get_mut(&sender);
                let entry = entry.ok_or_else(|| CliError::usage(format!("--senders: there is no sender {sender}")))?;
                entry.destinations.insert(name.clone());
            }
            for reader in readers {
                let entry = draft.readers.get_mut(&reader);
                let entry = entry.ok_or_else(|| CliError::usage(format!("--readers: there is no reader {reader}")))?;
                entry.destinations.insert(name.clone());
            }
        }
    }
    // Signing would refuse it, when it stands in the draft already.
    draft.check_keys().map_err(|error| CliError::usage(error.to_string()))?;
    Ok(made)
}

fn no_key(word: &str, name: &impl std::fmt::Display) -> CliError {
    CliError::usage(format!(
        "{word} {name}: give its public keys with --public, or the operator's key with --operator to make keys for it"
    ))
}

/// Refuses to put an entry in the place of another one, which is described, unless that is meant.
fn check_replaced(
    word: &str,
    name: &impl std::fmt::Display,
    there: Option<String>,
    meant: bool,
) -> Result<(), CliError> {
    match there {
        Some(there) if !meant => Err(CliError::usage(format!(
            "{word} {name} is there already, {there}: add --replace if this is meant to take its place"
        ))),
        _ => Ok(()),
    }
}

/// Names of destinations that the draft has. Errors: one that it has not.
fn known(draft: &Draft, given: Vec<DestinationName>) -> Result<BTreeSet<DestinationName>, CliError> {
    if let Some(unknown) = given.iter().find(|name| !draft.destinations.contains_key(name)) {
        let has = match draft.destinations.is_empty() {
            true => "it has none yet".to_owned(),
            false => format!("it has {}", names(draft.destinations.keys())),
        };
        let text = format!("--destinations: the draft has no destination {unknown}: {has}; add the destination first");
        return Err(CliError::usage(text));
    }
    Ok(given.into_iter().collect())
}

/// The keys of a public file as current, after those of the entry that it does not name, which are retired.
fn merged(
    entry: &DestinationEntry,
    public: &Path,
    environment: EnvironmentId,
) -> Result<Vec<DestinationKey>, CliError> {
    let (of_environment, of_destination, given) = match read_public(public)? {
        PublicKeys::Destination { environment, destination, key } => (environment, destination, key),
        other => return Err(wrong_kind(public, &other, "destination")),
    };
    if of_environment != environment || of_destination != entry.name {
        let problem = format!("these keys are of destination {of_destination} in environment {of_environment}");
        return Err(wrong(public, problem));
    }
    let mut keys: Vec<_> = entry
        .keys
        .iter()
        .filter(|old| given.iter().all(|new| new.id != old.id))
        .map(|old| DestinationKey { state: KeyState::Retired, ..old.clone() })
        .collect();
    for key in given {
        keys.push(DestinationKey::current(key.suite, key.public).map_err(|error| wrong(public, error))?);
    }
    Ok(keys)
}

/// Removes an entry that nobody names any more.
pub(super) fn remove(draft: &mut Draft, kind: Kind, name: &str) -> Result<(), CliError> {
    let word = format!("{kind:?}").to_lowercase();
    let named_by =
        |who: String| Err(CliError::usage(format!("{word} {name}: {who} still names it: change that first")));
    let removed = match kind {
        Kind::Node => {
            let user = draft.destinations.values().find(|entry| entry.nodes.iter().any(|node| node.as_str() == name));
            if let Some(user) = user {
                return named_by(format!("destination {}", user.name));
            }
            draft.nodes.remove(&parsed::<NodeName>(name)?).is_some()
        }
        Kind::Destination => {
            let name: DestinationName = parsed(name)?;
            let sender = draft.senders.values().find(|entry| entry.destinations.contains(&name));
            let reader = draft.readers.values().find(|entry| entry.destinations.contains(&name));
            match (sender, reader) {
                (Some(sender), _) => return named_by(format!("sender {}", sender.name)),
                (_, Some(reader)) => return named_by(format!("reader {}", reader.name)),
                (None, None) => draft.destinations.remove(&name).is_some(),
            }
        }
        Kind::Sender => draft.senders.remove(&parsed::<SenderName>(name)?).is_some(),
        Kind::Reader => draft.readers.remove(&parsed::<ReaderName>(name)?).is_some(),
    };
    if removed { Ok(()) } else { Err(CliError::usage(format!("there is no {word} {name} in the draft"))) }
}

fn parsed<T: std::str::FromStr>(name: &str) -> Result<T, CliError>
where
    T::Err: std::fmt::Display,
{
    name.parse().map_err(|error| CliError::usage(format!("{error}")))
}

fn checked(file: &Path, key: &VerifyingKeyBytes) -> Result<PublicKey, CliError> {
    PublicKey::check(key).map_err(|error| wrong(file, error))
}

fn wrong_kind(file: &Path, given: &PublicKeys, needed: &str) -> CliError {
    wrong(file, format!("this is {} key, a {needed}'s is needed here", given.kind().with_article()))
}
