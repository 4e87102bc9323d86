//! Paths in the commands that are printed for people to type: quoted where a shell would take them apart.

use std::path::Path;

/// A path as a POSIX shell takes it for one word.
pub(super) fn quoted(path: &Path) -> String {
    word(&path.display().to_string())
}

/// Text as a POSIX shell takes it for one word: as it is where nothing in it means anything to a shell, else in single quotes.
pub(super) fn word(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:=@%+,".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_take_apart_is_quoted() {
        for plain in ["nodes/a/node.toml", "/srv/größer-1.2/x_y", "a@b:c=d"] {
            assert_eq!(word(plain), plain);
        }
        assert_eq!(word("my shop/a"), "'my shop/a'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!((word(""), word("~/a"), word("$(x)")), ("''".into(), "'~/a'".into(), "'$(x)'".into()));
    }
}
