//! Every command in a document is one that exists, with flags that it has; those of docs/what-happens-when.md, which people type in
//! a hurry, are whole.

use crate::root;

/// The commands of a text: whole lines of its code blocks, and what stands between backticks elsewhere.
fn commands(text: &str) -> Vec<Vec<String>> {
    let (mut found, mut in_block) = (Vec::new(), false);
    for line in text.replace("\\\n", " ").lines() {
        let line = line.trim();
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    let ends = |word: &&str| !["|", "&&", "&", "#", ";"].contains(word) && !word.contains('>');
    let words = |line: &String| line.split_whitespace().take_while(ends).map(str::to_owned).collect::<Vec<_>>();
    found.iter().filter(|line| line.starts_with("sealcast ")).map(words).collect()
}

/// What is wrong with a command: words that lead nowhere, flags that it does not have.
fn wrong(words: &[String]) -> Option<String> {
    let mut command = sealcast::cli::command();
    command.build();
    let mut at = &command;
    for word in &words[1..] {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default();
            if !at.get_arguments().any(|argument| argument.get_long() == Some(flag)) && flag != "help" {
                return Some(format!("{} has no --{flag}", at.get_name()));
            }
        } else if let Some(inner) = at.find_subcommand(word) {
            at = inner;
        } else if at.has_subcommands() && at.get_positionals().next().is_none() && !word.starts_with('-') {
            return Some(format!("{} has no {word}", at.get_name()));
        }
    }
    None
}

#[test]
fn every_command_in_a_document_exists() {
    let mut gone = Vec::new();
    let mut looked = 0;
    let documents = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for file in documents.filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        for words in commands(&std::fs::read_to_string(&file).unwrap()) {
            looked += 1;
            gone.extend(wrong(&words).map(|why| format!("{}: {}: {why}", file.display(), words.join(" "))));
        }
    }
    assert!(looked > 30, "{looked} commands were found");
    assert!(gone.is_empty(), "{}", gone.join("\n"));
}

#[test]
fn every_command_of_what_happens_when_is_whole() {
    let text = std::fs::read_to_string(root().join("docs/what-happens-when.md")).unwrap();
    let all = commands(&text);
    assert!(all.len() > 15, "{all:?}");
    for words in all.into_iter().filter(|words| !words.contains(&"ID".to_owned())) {
        let parsed = sealcast::cli::command().try_get_matches_from(&words);
        assert!(parsed.is_ok(), "{}: {}", words.join(" "), parsed.unwrap_err());
    }
}

#[test]
fn a_command_that_is_not_there_is_seen() {
    let of = |line: &str| commands(&format!("Type `{line}`.")).pop().unwrap();
    assert_eq!(wrong(&of("sealcast topic init --grow --config x")), None);
    assert!(wrong(&of("sealcast keys rotate")).is_some());
    assert!(wrong(&of("sealcast topic init --shrink")).is_some());
    assert_eq!(commands("```sh\nsealcast dev x 2>log | less\n```\n`other sealcast`"), [["sealcast", "dev", "x"]]);
}
