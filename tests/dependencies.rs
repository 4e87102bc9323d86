#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
//! What deny.toml says of licences, banned crates and sources holds for every crate that is built into Sealcast or its tests.
//! Read from `cargo tree`, so that the check needs nothing installed; `cargo deny check licenses bans sources` says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The file, and the crates of the targets that it names.
struct Tree {
    deny: toml::Table,
    /// "name version", with where it comes from if that is not the registry -> licence.
    crates: BTreeMap<String, String>,
}

impl Tree {
    fn read() -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        let deny: toml::Table = std::fs::read_to_string(format!("{root}/deny.toml")).unwrap().parse().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root).args(["tree", "--locked", "--all-features", "--edges", "normal,build,dev"]);
        cargo.args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"]);
        for target in strings(&deny["graph"]["targets"]) {
            cargo.args(["--target", &target]);
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty());
        let crates: BTreeMap<_, _> = lines
            .map(|line| line.split_once('|').unwrap_or_else(|| panic!("{line}: no licence")))
            .map(|(name, licence)| (name.replace(" v", " ").replace(" (proc-macro)", ""), licence.to_owned()))
            .collect();
        assert!(crates.len() > 100, "{} crates cannot be all", crates.len());
        Self { deny, crates }
    }
}

fn strings(list: &toml::Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// Whether licences that are allowed satisfy an SPDX expression: AND binds closer than OR; older crates write / for OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let value = any_of(&mut rest, allowed)?;
    if rest.is_empty() { Ok(value) } else { Err(format!("{rest:?} is left over")) }
}

fn take<'a>(rest: &mut &[&'a str]) -> Option<&'a str> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(first)
}

fn any_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Result<bool, String> {
    let mut value = all_of(rest, allowed)?;
    while rest.first() == Some(&"OR") {
        take(rest);
        value |= all_of(rest, allowed)?;
    }
    Ok(value)
}

fn all_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Result<bool, String> {
    let mut value = one_of(rest, allowed)?;
    while rest.first() == Some(&"AND") {
        take(rest);
        value &= one_of(rest, allowed)?;
    }
    Ok(value)
}

fn one_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> Result<bool, String> {
    match take(rest) {
        Some("(") => {
            let value = any_of(rest, allowed)?;
            if take(rest) == Some(")") { Ok(value) } else { Err("a parenthesis is not closed".to_owned()) }
        }
        Some(word) if !["OR", "AND", "WITH", ")"].contains(&word) => {
            if rest.first() == Some(&"WITH") {
                take(rest);
                let exception = take(rest).ok_or("WITH what")?;
                return Ok(allowed.contains(&format!("{word} WITH {exception}")));
            }
            Ok(allowed.contains(word))
        }
        other => Err(format!("{other:?} where a licence should stand")),
    }
}

#[test]
fn every_crate_has_a_licence_that_is_allowed() {
    let tree = Tree::read();
    let allowed: BTreeSet<String> = strings(&tree.deny["licenses"]["allow"]).into_iter().collect();
    let wrong: Vec<_> = tree
        .crates
        .iter()
        .map(|(name, expression)| (name, expression, satisfied(expression, &allowed)))
        .filter(|(_, _, satisfied)| *satisfied != Ok(true))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_crate_is_banned_and_all_come_from_the_registry() {
    let tree = Tree::read();
    let bans = tree.deny["bans"]["deny"].as_array().unwrap();
    let banned: BTreeSet<&str> = bans.iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    for name in tree.crates.keys() {
        let words: Vec<&str> = name.split(' ').collect();
        assert!(!banned.contains(words[0]), "{name} is banned");
        // What is from elsewhere says where from behind its version.
        assert!(words.len() == 2 || words[0] == env!("CARGO_PKG_NAME"), "{name}: not from the registry");
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND GPL-3.0", false),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception AND ISC", true),
    ] {
        assert_eq!(satisfied(expression, &allowed), Ok(expected), "{expression}");
    }
    for nonsense in ["", "MIT OR", "(MIT", "MIT)", "AND MIT", "MIT ISC", "MIT WITH"] {
        assert!(satisfied(nonsense, &allowed).is_err(), "{nonsense}");
    }
}
