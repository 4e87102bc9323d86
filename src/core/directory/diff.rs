//! What changes from one directory to the next, for whoever is about to sign it.
//!
//! Owns the comparison and its words. Must not judge changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Draft, KeyState, Span, key_id, write_time};
use crate::core::id::Suite;

/// How an entry changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is there before and after, and differs.
    Changed,
    /// It goes away.
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

/// One field that differs. Keys are shown by their ids, signing keys whole.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// What becomes of the entry.
    pub change: Change,
    /// `environment`, `node`, `destination`, `sender` or `reader`.
    pub kind: &'static str,
    /// The entry's name.
    pub name: String,
    /// The field, as the directory names it.
    pub field: &'static str,
    /// How it was; `None` in an entry that is new.
    pub before: Option<String>,
    /// How it will be; `None` in an entry that goes away.
    pub after: Option<String>,
}

type Fields = BTreeMap<&'static str, String>;

/// Every field in which `after` differs from `before`, versions apart; an empty list for equal content. Without a `before`
/// all is new.
pub fn differences(before: Option<&Draft>, after: &Draft) -> Vec<Difference> {
    let old = before.map(entries).unwrap_or_default();
    let new = entries(after);
    let mut found = Vec::new();
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (old.get(key), new.get(key));
        let change = match (was, is) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        let names: BTreeSet<_> = was.into_iter().chain(is).flat_map(Fields::keys).collect();
        for field in names {
            let value = |of: Option<&Fields>| of.and_then(|fields| fields.get(field).cloned());
            let (before, after) = (value(was), value(is));
            if before != after {
                let (_, kind, name) = key.clone();
                found.push(Difference { change, kind, name, field, before, after });
            }
        }
    }
    found
}

/// All entries by kind, in the order of the file, and name.
fn entries(draft: &Draft) -> BTreeMap<(u8, &'static str, String), Fields> {
    let mut all = BTreeMap::new();
    all.insert(
        (0, "environment", draft.name.to_string()),
        Fields::from([
            ("id", draft.environment.to_string()),
            ("valid_until", write_time(draft.valid_until)),
            ("grace", Span(draft.grace).to_string()),
        ]),
    );
    for node in draft.nodes.values() {
        let fields = Fields::from([
            ("address", node.address.clone()),
            ("signing", node.signing.bytes().to_string()),
            ("tls", node.tls.to_string()),
            ("hpke", key_id(Suite::XWing, &node.hpke).to_string()),
        ]);
        all.insert((1, "node", node.name.to_string()), fields);
    }
    for entry in draft.destinations.values() {
        let state = |state| if state == KeyState::Current { "current" } else { "retired" };
        let mut keys: Vec<_> =
            entry.keys.iter().map(|key| format!("{} {} {}", key.suite, key.id, state(key.state))).collect();
        keys.sort();
        let fields = Fields::from([
            ("nodes", listed(&entry.nodes)),
            ("keys", keys.join(", ")),
            ("minimum_suite", entry.minimum_suite.to_string()),
            ("max_life", Span(entry.max_life).to_string()),
            ("idempotency_window", Span(entry.idempotency_window).to_string()),
            ("retention", Span(entry.retention).to_string()),
        ]);
        all.insert((2, "destination", entry.name.to_string()), fields);
    }
    for sender in draft.senders.values() {
        let fields = Fields::from([
            ("signing", sender.signing.bytes().to_string()),
            ("destinations", listed(&sender.destinations)),
        ]);
        all.insert((3, "sender", sender.name.to_string()), fields);
    }
    for reader in draft.readers.values() {
        let fields = Fields::from([
            ("signing", reader.signing.bytes().to_string()),
            ("hpke", key_id(Suite::XWing, &reader.hpke).to_string()),
            ("destinations", listed(&reader.destinations)),
        ]);
        all.insert((4, "reader", reader.name.to_string()), fields);
    }
    all
}

fn listed<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::directory::SenderEntry;
    use crate::core::id::{EnvironmentId, EnvironmentName, SenderName, Time};
    use crate::core::sign::SecretKey;

    #[test]
    fn what_is_equal_is_no_difference_and_what_differs_is_told_by_field() {
        let mut before = Draft::new(EnvironmentId([7; 16]), EnvironmentName::new("test").unwrap(), Time(1_000));
        let sender = |name: &str, seed: u8| SenderEntry {
            name: SenderName::new(name).unwrap(),
            signing: SecretKey::from_seed(&[seed; 32]).public(),
            destinations: Default::default(),
        };
        before.add_sender(sender("web", 1)).add_sender(sender("old", 2));
        let mut after = before.clone();
        after.version += 1;
        assert_eq!(differences(Some(&before), &after), []);
        after.senders.remove(&SenderName::new("old").unwrap());
        after.senders.get_mut(&SenderName::new("web").unwrap()).unwrap().destinations.insert("orders".parse().unwrap());
        after.add_sender(sender("new", 3));
        let found = differences(Some(&before), &after);
        let told: Vec<_> = found.iter().map(|one| (one.change, one.name.as_str(), one.field)).collect();
        assert_eq!(
            told,
            [
                (Change::Added, "new", "destinations"),
                (Change::Added, "new", "signing"),
                (Change::Removed, "old", "destinations"),
                (Change::Removed, "old", "signing"),
                (Change::Changed, "web", "destinations"),
            ]
        );
        let changed = found.last().unwrap();
        assert_eq!((changed.before.as_deref(), changed.after.as_deref()), (Some("none"), Some("orders")));
        assert!(differences(None, &after).iter().all(|one| one.change == Change::Added && one.before.is_none()));
    }
}
