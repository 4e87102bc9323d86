//! Properties of the Kafka client in a configuration: which hold secrets, which name files, and how those are read.
//!
//! Owns how properties are written and shown. Must not know what librdkafka makes of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serializer;

use crate::keys::{KeyError, read_secret_text};

/// `X_file` gives property X the text of a file.
pub(super) const FILE_SUFFIX: &str = "_file";

/// Properties that hold what everybody may see, though they look like a key: files with them may be open to others.
const CERTIFICATES: [&str; 2] = ["ssl.ca.pem", "ssl.certificate.pem"];

/// The longest file of certificates, in bytes.
const CERTIFICATES_BYTES: u64 = 1 << 20;

/// A property as it is written on a command line: `NAME=VALUE`, or `NAME_file=PATH`, of which the text is read at once. The
/// path is relative to the working folder, and so is that of a `*.location`, which becomes absolute: it may go into
/// configurations anywhere. Errors: in words, with the mend; never with the value of a secret.
pub fn given_property(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => (name, value),
        _ => return Err("expected PROP=VALUE, for example security.protocol=ssl, or PROP_file=PATH".to_owned()),
    };
    match name.strip_suffix(FILE_SUFFIX) {
        None => Ok((name.to_owned(), anchored(name, value, Path::new(""))?)),
        Some(property) => match read(property, Path::new(value)) {
            Ok(text) => Ok((property.to_owned(), text)),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Reads the file that gives a property its text. Errors: [`KeyError`], also for a file with a secret that others can read.
pub(super) fn read(property: &str, path: &Path) -> Result<String, KeyError> {
    if CERTIFICATES.contains(&property) {
        let failed = |verb| move |cause| KeyError::Io { path: path.to_path_buf(), verb, cause };
        let length = std::fs::metadata(path).map_err(failed("open"))?;
        if !length.is_file() || length.len() > CERTIFICATES_BYTES {
            return Err(KeyError::NoKeyFile { path: path.to_path_buf(), most: CERTIFICATES_BYTES as usize });
        }
        return std::fs::read_to_string(path).map_err(failed("read"));
    }
    // A line feed at the end is the editor's, not the password's.
    read_secret_text(path).map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A property's value as every configuration may have it, in whichever folder: a `*.location` that is relative, to `folder`,
/// becomes absolute. One that is absolute already may be meant for another machine. Errors: in words, when nothing is there.
pub(super) fn anchored(name: &str, value: &str, folder: &Path) -> Result<String, String> {
    if !names_file(name, value) || Path::new(value).is_absolute() {
        return Ok(value.to_owned());
    }
    let file = folder.join(value);
    let found = std::fs::metadata(&file).and_then(|_| std::path::absolute(&file));
    let wrong = |error| format!("{name}: {}: {error}: name a file that is there, or an absolute path", file.display());
    found.map(|path| path.display().to_string()).map_err(wrong)
}

/// Whether a property names a file or folder of this machine.
pub(super) fn names_file(name: &str, value: &str) -> bool {
    // librdkafka looks for the system's own authorities then.
    name.ends_with(".location") && !value.is_empty() && value != "probe"
}

/// Whether a property holds a secret: whatever name has to do with a password, a key or a token.
pub(super) fn holds_secret(name: &str) -> bool {
    const PUBLIC: [&str; 4] =
        ["ssl.key.location", "ssl.keystore.location", "sasl.kerberos.keytab", "sasl.oauthbearer.token.endpoint.url"];
    const WORDS: [&str; 7] = ["password", "secret", "key", "token", "oauthbearer.config", "pem", "credential"];
    !name.ends_with(FILE_SUFFIX) && !PUBLIC.contains(&name) && WORDS.iter().any(|word| name.contains(word))
}

/// Properties as they may be shown, secrets among them redacted.
pub(super) fn shown(properties: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    properties.iter().map(|(name, value)| (name.as_str(), if holds_secret(name) { "(redacted)" } else { value }))
}

pub(super) fn redacted<S: Serializer>(properties: &BTreeMap<String, String>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(shown(properties))
}
