//! docs/rules.md has every rule of the design, where it lives, and the tests that show it; what any document names as a test is
//! one that exists and runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{root, sources};

/// The rules that hold today. R25 is about nodes that ask each other for more than their own group's bodies, which they do not
/// do yet.
fn rules() -> impl Iterator<Item = u32> {
    (1..=24).chain([26])
}

/// Every test function that runs without being asked for by name, as `PROGRAM MODULE::NAME`: so that
/// `cargo test --test PROGRAM MODULE::NAME` runs it (`--lib` for `lib`).
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src", "tests"] {
        for file in sources(folder) {
            let inside = file.strip_prefix(root().join(folder)).unwrap().with_extension("");
            let mut path: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            path.retain(|part| !["mod", "main", "lib"].contains(&part.as_str()));
            let program = if folder == "src" { "lib".to_owned() } else { path.remove(0) };
            for name in test_functions(&std::fs::read_to_string(&file).unwrap()) {
                let module = path.iter().map(String::as_str).chain([name.as_str()]).collect::<Vec<_>>().join("::");
                found.insert(format!("{program} {module}"));
            }
        }
    }
    assert!(found.len() > 300, "{} tests were found", found.len());
    found
}

/// The test functions of a file; `tests::` stands before those of its inner module.
fn test_functions(text: &str) -> Vec<String> {
    let (mut found, mut inner, mut pending) = (Vec::new(), String::new(), None);
    for line in text.lines() {
        let code = line.trim();
        if let Some(module) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            inner = format!("{module}::");
        } else if line == "}" && !inner.is_empty() {
            inner.clear();
        } else if code == "#[test]" || code.starts_with("#[tokio::test") {
            pending = Some(true);
        } else if code.starts_with("#[ignore") {
            pending = pending.map(|_| false);
        } else if let Some(runs) = pending
            && let Some((_, rest)) = code.split_once("fn ")
        {
            let name = rest.split(|next: char| !(next.is_alphanumeric() || next == '_')).next().unwrap();
            found.extend(runs.then(|| format!("{inner}{name}")));
            pending = None;
        }
    }
    found
}

/// The rule that a test's name begins with: `r07_a_clock_..` is 7.
fn rule_of(test: &str) -> Option<u32> {
    let name = test.rsplit([':', ' ']).next().unwrap();
    let (digits, _) = name.strip_prefix('r')?.split_once('_')?;
    (digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The tests that a text names: `PROGRAM MODULE::NAME` between backticks.
fn named<'a>(text: &'a str, programs: &BTreeSet<&str>) -> Vec<&'a str> {
    let is_path = |path: &str| {
        path.contains('_') && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
    };
    let lines = text.lines().flat_map(quoted);
    lines.filter(|word| word.split_once(' ').is_some_and(|(to, path)| programs.contains(to) && is_path(path))).collect()
}

#[test]
fn every_rule_is_told_in_one_sentence_and_has_a_place_and_tests() {
    let text = std::fs::read_to_string(root().join("docs/rules.md")).unwrap();
    let existing = tests();
    let mut wrong = Vec::new();
    let mut listed: BTreeMap<&str, u32> = BTreeMap::new();
    let mut told = Vec::new();
    for section in text.split("\n## R").skip(1) {
        let (number, body) = section.split_once('\n').unwrap();
        let number: u32 = number.trim().parse().unwrap_or_else(|_| panic!("docs/rules.md: ## R{number}: a number"));
        told.push(number);
        let mut sentence = String::new();
        let (mut places, mut tests) = (0, 0);
        for line in body.lines().filter(|line| !line.is_empty()).take_while(|line| !line.starts_with('#')) {
            if let Some(test) = line.strip_prefix("- `").and_then(|rest| rest.strip_suffix('`')) {
                tests += 1;
                if !existing.contains(test) {
                    wrong.push(format!("R{number}: there is no test `{test}` (or it is ignored)"));
                }
                if rule_of(test) != Some(number) {
                    wrong.push(format!("R{number}: `{test}` is to begin with r{number:02}_"));
                }
                if listed.insert(test, number).is_some() {
                    wrong.push(format!("R{number}: `{test}` stands twice"));
                }
            } else if let Some(files) = line.strip_prefix("Lives in: ") {
                for file in quoted(files) {
                    places += 1;
                    if !root().join(file).exists() {
                        wrong.push(format!("R{number}: there is no {file}"));
                    }
                }
            } else {
                sentence.push_str(line);
            }
        }
        if !sentence.ends_with('.') || sentence.matches(". ").count() > 0 {
            wrong.push(format!("R{number}: one sentence, not: {sentence}"));
        }
        if places == 0 || tests == 0 {
            wrong.push(format!("R{number}: {places} places in the code, {tests} tests: one of each at least"));
        }
    }
    if told != rules().collect::<Vec<_>>() {
        wrong.push(format!("it tells of {told:?}, and is to tell of each rule once, in order"));
    }
    for test in existing.iter().filter(|test| rule_of(test).is_some() && !listed.contains_key(test.as_str())) {
        wrong.push(format!("R{}: add this line: - `{test}`", rule_of(test).unwrap()));
    }
    assert!(wrong.is_empty(), "docs/rules.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_test_that_a_document_names_exists() {
    let existing = tests();
    let programs: BTreeSet<&str> = existing.iter().map(|test| test.split_once(' ').unwrap().0).collect();
    let mut gone = Vec::new();
    let mut documents = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    documents.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for file in documents.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(file).unwrap();
        let names = named(&text, &programs).into_iter().filter(|test| !existing.contains(*test));
        gone.extend(names.map(|test| format!("{}: {test}", shown(file))));
    }
    assert!(gone.is_empty(), "named, and not there (or ignored):\n{}", gone.join("\n"));
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn tests_are_found_as_cargo_names_them() {
    // Not with its own sign: this file is read too.
    let text = "
@[test]
fn one() {}
@[tokio::test(flavor = \"multi_thread\")]
@[ignore = \"long\"]
async fn two() {}
fn no_test() {}
mod tests {
    /// Says why.
    @[tokio::test]
    async fn r07_three() {}
}
proptest! {
    @[test]
    fn four(of in 0..3) {}
}"
    .replace('@', "#");
    assert_eq!(test_functions(&text), ["one", "tests::r07_three", "four"]);
    assert_eq!(rule_of("lib a::tests::r07_three"), Some(7));
    assert_eq!((rule_of("pure recovers"), rule_of("pure r_x"), rule_of("pure rx7_y")), (None, None, None));
    let programs = BTreeSet::from(["pure"]);
    assert_eq!(
        named("see `pure a::b_c`, `pure`, `other a::b_c`\n`pure x` `pure b_c`", &programs),
        ["pure a::b_c", "pure b_c"]
    );
    let existing = tests();
    assert!(existing.contains("house rules::tests_are_found_as_cargo_names_them"), "it finds itself");
    assert!(existing.contains("lib seams::hardening::tests::core_dumps_are_off_afterwards"));
}
