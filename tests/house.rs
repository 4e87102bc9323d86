#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
//! The house rules of the design, section 11, read from the sources: which module may use which, which crate is known where,
//! and how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[path = "house/commands.rs"]
mod commands;
#[path = "house/rules.rs"]
mod rules;

/// What each module may use directly or not: `cli -> node -> raft -> rpc`, `cli -> client -> rpc`, all of these
/// `-> transport -> store -> seams, config, keys -> core`; telemetry may be used by everything above core and uses core alone.
/// Seams, config and keys stand side by side: they may use each other, as long as no circle comes of it.
fn may_use(module: &str) -> &'static [&'static str] {
    match module {
        "core" => &[],
        "telemetry" => &["core"],
        "seams" | "config" | "keys" => &["seams", "config", "keys", "telemetry", "core"],
        "store" => &["seams", "config", "keys", "telemetry", "core"],
        "transport" => &["store", "seams", "config", "keys", "telemetry", "core"],
        "rpc" => &["transport", "store", "seams", "config", "keys", "telemetry", "core"],
        "raft" | "client" => &["rpc", "transport", "store", "seams", "config", "keys", "telemetry", "core"],
        "node" => &["raft", "rpc", "transport", "store", "seams", "config", "keys", "telemetry", "core"],
        "local" => &["node", "raft", "rpc", "transport", "store", "seams", "config", "keys", "telemetry", "core"],
        "testing" => &[
            "local",
            "node",
            "client",
            "raft",
            "rpc",
            "transport",
            "store",
            "seams",
            "config",
            "keys",
            "telemetry",
            "core",
        ],
        "cli" => &[
            "local",
            "node",
            "client",
            "raft",
            "rpc",
            "transport",
            "store",
            "seams",
            "config",
            "keys",
            "telemetry",
            "core",
        ],
        other => panic!("src/{other}: the design, section 11, has no such module: add it there and here"),
    }
}

/// The same inside core: `decide -> seal`; `gather, place -> split`; `receipt -> split` (one Merkle tree for both);
/// everything `-> directory, sign -> wire -> limits, id`.
fn may_use_in_core(module: &str) -> &'static [&'static str] {
    match module {
        "limits" => &[],
        "id" => &["limits"],
        "wire" => &["limits", "id"],
        "sign" => &["wire", "limits", "id"],
        "directory" => &["sign", "wire", "limits", "id"],
        "seal" | "split" => &["directory", "sign", "wire", "limits", "id"],
        "gather" | "place" | "receipt" => &["split", "directory", "sign", "wire", "limits", "id"],
        "decide" => &["seal", "directory", "sign", "wire", "limits", "id"],
        other => panic!("src/core/{other}: the design, section 11, has no such module: add it there and here"),
    }
}

/// Crates that one place alone may know.
const KNOWN_IN_ONE_PLACE: &[(&str, &str)] =
    &[("redb", "src/store/"), ("rdkafka", "src/transport/kafka"), ("openraft", "src/raft/")];

const LONGEST_FILE: usize = 600;

#[test]
fn every_metric_that_is_described_is_measured_somewhere() {
    let names = std::fs::read_to_string(root().join("src/telemetry/names.rs")).unwrap();
    let declared = names.lines().filter_map(|line| line.trim().split_once(" = \"sealcast_"));
    let declared: Vec<String> = declared.map(|(name, _)| name.to_owned()).collect();
    assert!(declared.len() > 40, "the list was read: {declared:?}");
    let texts: Vec<String> = sources("src").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let used = |name: &str| {
        let needle = format!("names::{name}");
        let ends = |text: &str| !text.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        texts.iter().any(|text| text.match_indices(&needle).any(|(at, _)| ends(&text[at + needle.len()..])))
    };
    let unused: Vec<&String> = declared.iter().filter(|name| !used(name)).collect();
    assert!(unused.is_empty(), "described, and never measured: {unused:?}");
}

#[test]
fn every_error_says_whether_trying_again_can_help() {
    let mut errors = 0;
    for path in sources("src") {
        let text = std::fs::read_to_string(&path).unwrap();
        for derived in text.match_indices("thiserror::Error").map(|(at, _)| &text[at..]) {
            let declared = derived.lines().skip(1).find_map(|line| line.trim().strip_prefix("pub "));
            let Some(declared) = declared.filter(|line| line.starts_with("enum ") || line.starts_with("struct "))
            else {
                continue;
            };
            let name = declared.split(|next: char| !next.is_alphanumeric()).nth(1).unwrap();
            // Any of its blocks may have it, a generic one too.
            let says = text.split("\nimpl").skip(1).any(|block| {
                let (head, body) = block.split_once('{').unwrap();
                let of_it = head.split(|next: char| !next.is_alphanumeric()).any(|word| word == name);
                let body = body.split_once("\n}").map_or(body, |(body, _)| body);
                of_it && !head.contains(" for ") && body.contains("pub fn retryable(&self)")
            });
            assert!(says, "{}: {name} has no retryable()", path.display());
            errors += 1;
        }
    }
    assert!(errors > 40, "{errors} errors were found");
}

#[test]
fn no_arrow_runs_back() {
    let mut back = Vec::new();
    let mut beside: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources("src") {
        let module = module_of(&file);
        let Some(from) = module.first() else { continue };
        for path in paths(&std::fs::read_to_string(&file).unwrap(), &module) {
            let Some(to) = path.first() else { continue };
            if to != from && !may_use(from).contains(&to.as_str()) {
                back.push(format!("{}: {from} must not use {}", file.display(), path.join("::")));
            }
            if to != from && ["seams", "config", "keys"].contains(&from.as_str()) {
                beside.entry(from.clone()).or_default().insert(to.clone());
            }
            if let ([from_top, from, ..], [to_top, to, ..]) = (module.as_slice(), path.as_slice())
                && from_top == "core"
                && to_top == "core"
                && from != to
                && !may_use_in_core(from).contains(&to.as_str())
            {
                back.push(format!("{}: core::{from} must not use {}", file.display(), path.join("::")));
            }
        }
    }
    for (one, used) in &beside {
        for other in used {
            if beside.get(other).is_some_and(|back| back.contains(one)) {
                back.push(format!("{one} and {other} use each other"));
            }
        }
    }
    assert!(back.is_empty(), "arrows that run back:\n{}", back.join("\n"));
}

#[test]
fn the_program_enters_through_the_command_line() {
    let main = std::fs::read_to_string(root().join("src/main.rs")).unwrap();
    let code = tokens(&main);
    for at in code.windows(3).filter(|at| at[0] == "sealcast" && at[1] == "::") {
        assert_eq!(at[2], "cli", "src/main.rs may use sealcast::cli alone");
    }
}

#[test]
fn each_great_crate_is_known_in_one_place() {
    let mut strays = Vec::new();
    for file in sources("src") {
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        let code = tokens(&std::fs::read_to_string(&file).unwrap());
        for (name, place) in KNOWN_IN_ONE_PLACE {
            if !shown.starts_with(place) && code.windows(2).any(|at| at[0] == *name && at[1] == "::") {
                strays.push(format!("{shown}: only {place} may know {name}"));
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

#[test]
fn only_the_seams_ask_for_time_and_randomness() {
    let asks = ["tokio::time", "Instant::now", "SystemTime", "getrandom::", "OsRng", "thread_rng"];
    // What a person waits for at a terminal is never simulated.
    let may = |file: &Path| ["src/seams", "src/cli"].iter().any(|folder| file.starts_with(root().join(folder)));
    let mut strays = Vec::new();
    for file in sources("src").into_iter().filter(|file| !may(file)) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, ask) in text.lines().enumerate().flat_map(|(at, line)| asks.map(|ask| ((at + 1, line), ask))) {
            let code = line.1.split("//").next().unwrap_or_default();
            if code.contains(ask) {
                strays.push(format!("{}:{}: {ask}: use the seams", file.display(), line.0));
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

/// What decides is a function of what it is given: nothing in core can ask the machine, and nothing that `apply` uses keeps
/// anything between two calls or depends on an order that is not visible.
#[test]
fn r04_nothing_in_apply_reads_configuration_clock_or_randomness() {
    let machine =
        ["env", "fs", "process", "thread", "SystemTime", "Instant", "UNIX_EPOCH", "tokio", "getrandom", "rand"];
    let sockets = ["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"];
    let hidden = ["HashMap", "HashSet", "RandomState", "Mutex", "RwLock", "OnceLock", "LazyLock", "OnceCell", "Cell"];
    let kept = ["RefCell", "UnsafeCell", "AtomicU64", "AtomicUsize", "AtomicBool", "atomic", "thread_local", "static"];
    let decides = ["decide", "directory", "sign", "wire", "id", "limits"].map(|module| format!("src/core/{module}"));
    let (mut strays, mut looked) = (Vec::new(), 0);
    for file in sources("src/core") {
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        let strict = decides.iter().any(|module| shown.starts_with(module.as_str()));
        looked += usize::from(strict);
        let code = tokens(&std::fs::read_to_string(&file).unwrap());
        for (at, word) in code.iter().enumerate() {
            let word = word.as_str();
            // A lifetime is no variable that lasts.
            let lifetime = at > 0 && code[at - 1] == "'";
            let asks = machine.contains(&word) || sockets.contains(&word);
            let keeps = strict && (hidden.contains(&word) || kept.contains(&word)) && !lifetime;
            // `env!` and `option_env!` are read when it is built, from who builds it.
            if asks || keeps || word == "option_env" {
                strays.push(format!("{shown}: {word}"));
            }
        }
        if strict {
            let module = module_of(&file);
            for path in paths(&std::fs::read_to_string(&file).unwrap(), &module) {
                if path.first().is_some_and(|top| top != "core") {
                    strays.push(format!("{shown}: {}", path.join("::")));
                }
            }
        }
    }
    assert!(looked > 15, "{looked} files decide");
    assert!(strays.is_empty(), "core decides from what it is given alone:\n{}", strays.join("\n"));
}

#[test]
fn no_file_is_longer_than_one_concern() {
    let long: Vec<String> = ["src", "tests", "benches", "examples"]
        .iter()
        .flat_map(|folder| sources(folder))
        .filter_map(|file| {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            (lines > LONGEST_FILE).then(|| format!("{}: {lines} lines, at most {LONGEST_FILE}", file.display()))
        })
        .collect();
    assert!(long.is_empty(), "split these by concern:\n{}", long.join("\n"));
}

#[test]
fn every_module_says_what_it_owns() {
    let silent: Vec<String> = sources("src")
        .into_iter()
        .filter(|file| !std::fs::read_to_string(file).unwrap().starts_with("//!"))
        .map(|file| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "these files do not begin with what they own:\n{}", silent.join("\n"));
}

#[test]
fn the_reader_of_use_lines_sees_what_it_should() {
    let module = ["core".to_owned(), "decide".to_owned(), "apply".to_owned()];
    let text = r#"
        use crate::store::{self, log::{Log as L, Entry}, *};
        use super::rows::Row; // crate::not::this
        /* crate::nor::this /* nested */ */
        fn f() -> crate::node::Thing { let s = "crate::cli::x \" crate::cli"; let c = '"'; super::super::seal::open('a', b'\'') }
        mod tests { use super::*; use super::super::view; fn g() { let r = r"crate::raw"; } }
        use self::here::There;
    "#;
    let seen: BTreeSet<String> = paths(text, &module).into_iter().map(|path| path.join("::")).collect();
    let expected = [
        "store",
        "store::log::Log",
        "store::log::Entry",
        "core::decide::rows::Row",
        "node::Thing",
        "core::seal::open",
        "core::decide::apply",
        "core::decide::view",
        "core::decide::apply::here::There",
    ];
    assert_eq!(seen, expected.iter().map(|&path| path.to_owned()).collect());
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// `src/core/decide/apply.rs` is core, decide, apply; a `mod.rs` is its folder; `lib.rs`, `main.rs` and the build script are
/// nothing.
fn module_of(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut module: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    match module.last().map(String::as_str) {
        Some("mod") => {
            module.pop();
        }
        Some("lib" | "main") if module.len() == 1 => module.clear(),
        Some("build") => module.clear(),
        _ => {}
    }
    module
}

/// Every path in the text that begins with `crate`, `super` or `self`, resolved from the crate's root.
fn paths(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let code = tokens(text);
    let mut found = Vec::new();
    let mut depth = 0;
    // Modules written inside the file, and the depth of their braces.
    let mut inner: Vec<(String, usize)> = Vec::new();
    let mut at = 0;
    while at < code.len() {
        match code[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.retain(|(_, opened)| *opened < depth + 1);
            }
            "mod" if code.get(at + 2).is_some_and(|next| next == "{") => inner.push((code[at + 1].clone(), depth + 1)),
            start @ ("crate" | "super" | "self")
                if code.get(at + 1).is_some_and(|next| next == "::")
                    && at.checked_sub(1).is_none_or(|before| code[before] != "::") =>
            {
                let mut here = module.to_vec();
                here.extend(inner.iter().map(|(name, _)| name.clone()));
                match start {
                    "crate" => here.clear(),
                    "super" => drop(here.pop()),
                    _ => {}
                }
                at = tree(&code, at + 2, here, &mut found);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads the rest of a path, `a::{b, c as d}` included; gives where it ends.
fn tree(code: &[String], mut at: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let token = |at: usize| code.get(at).map_or("", String::as_str);
    loop {
        match token(at) {
            "super" => drop(path.pop()),
            "self" | "*" => {
                found.push(path);
                return at + 1;
            }
            "{" => {
                at += 1;
                while !["}", ""].contains(&token(at)) {
                    at = tree(code, at, path.clone(), found);
                    if token(at) == "as" {
                        at += 2;
                    }
                    if token(at) == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_') => path.push(name.to_owned()),
            // Not a path after all: `self::` before something that is no name.
            _ => return at + 1,
        }
        if token(at + 1) != "::" {
            found.push(path);
            return at + 1;
        }
        at += 2;
    }
}

/// Words, `::` and single signs; without comments, strings and characters.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let char_at = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match (char_at(at), char_at(at + 1)) {
            ('/', '/') => {
                while at < chars.len() && char_at(at) != '\n' {
                    at += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 1;
                at += 2;
                while at < chars.len() && depth > 0 {
                    match (char_at(at), char_at(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                }
            }
            ('r', '"' | '#') => {
                let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
                if char_at(at + 1 + hashes) == '"' {
                    at += hashes + 2;
                    let end = |at: usize| char_at(at) == '"' && (1..=hashes).all(|more| char_at(at + more) == '#');
                    while at < chars.len() && !end(at) {
                        at += 1;
                    }
                    at += hashes + 1;
                } else {
                    at += 2; // a raw identifier: its name is the next token
                }
            }
            ('"', _) => {
                at += 1;
                while at < chars.len() && char_at(at) != '"' {
                    at += if char_at(at) == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character, not a lifetime.
            ('\'', '\\') => {
                at += 3;
                while at < chars.len() && char_at(at) != '\'' {
                    at += 1;
                }
                at += 1;
            }
            ('\'', _) if char_at(at + 2) == '\'' => at += 3,
            (':', ':') => {
                found.push("::".to_owned());
                at += 2;
            }
            (c, _) if word(c) => {
                let start = at;
                while at < chars.len() && word(char_at(at)) {
                    at += 1;
                }
                found.push(chars[start..at].iter().collect());
            }
            (c, _) => {
                if !c.is_whitespace() {
                    found.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    found
}
