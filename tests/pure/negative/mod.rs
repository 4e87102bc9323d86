//! Inputs that must be refused or survived, by number: one test each, named `nNN_...` (`rNN_nNN_...` where a rule is at stake), here or where the parts that it needs
//! are tested. Their list, which this module's own test goes by:
//!
//! | numbers | what is wrong |
//! |---|---|
//! | 1 to 6 | streams: final flag cleared, early; chunks swapped; the last dropped; an empty extra one; bytes behind the final one |
//! | 7 to 9 | commitment bit flipped; ciphertext that opens under two keys; two content keys in one envelope |
//! | 10 to 12 | wraps swapped, dropped or doubled, one byte short or long |
//! | 13 to 16 | unknown key id; retired key; suite below the minimum; mixed suites |
//! | 17 to 19 | small-order X25519; non-canonical ML-KEM; ML-KEM's implicit rejection |
//! | 20 to 22 | a body signed by another sender; a parcel id of two senders; two headers for one stripe |
//! | 23 to 26 | stripes of another core; of another chain; one in the middle missing; two last ones |
//! | 27 to 31 | signatures: of another purpose; S + L; small-order, non-canonical and mixed-order points |
//! | 32 to 37 | segments: proofs, indexes, inner nodes, no codeword, padding, a cached root with another proof |
//! | 38, 39 | compression bombs and lying lengths; what belongs elsewhere or expires too late |

mod keys;
mod points;
mod streams;
mod twice;

use std::collections::BTreeMap;
use std::path::Path;

/// Every number in a name like `fn nNN_...` or `fn rNN_nNN_...` below a `#[test]` in this folder's sources, and the names.
fn named(folder: &Path, found: &mut BTreeMap<u32, Vec<String>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (before, line) in text.lines().zip(text.lines().skip(1)) {
            let Some(name) = line.strip_prefix("fn ").filter(|_| before == "#[test]") else { continue };
            let name = name.split('(').next().unwrap_or_default();
            for word in name.split('_').take_while(|word| word.starts_with(['r', 'n'])) {
                let number = word.strip_prefix('n').filter(|digits| digits.len() == 2);
                if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
                    found.entry(number).or_default().push(name.to_owned());
                }
            }
        }
    }
}

#[test]
fn every_input_of_the_list_has_its_test() {
    let mut found = BTreeMap::new();
    named(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pure"), &mut found);
    let without: Vec<u32> = (1..=39).filter(|number| !found.contains_key(number)).collect();
    assert!(without.is_empty(), "no test is named for {without:?}");
    let other: Vec<_> = found.range(40..).chain(found.range(..1)).collect();
    assert!(other.is_empty(), "of no input of the list: {other:?}");
}
