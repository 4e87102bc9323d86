//! What a broker can see of one record, checked as far as a directory allows. Field names are those of
//! docs/wire-format.md.
//!
//! Owns how a record is shown. Must not open anything.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Row;
use crate::core::directory::{Directory, write_time};
use crate::core::id::{DestinationTag, Time};
use crate::core::receipt::{
    Directories, NOTICE_MAGIC, Notice, NoticeError, Query, QueryError, Statement, Verdict, is_query,
};
use crate::core::sign::PublicKey;
use crate::core::split::segment::{Segment, SegmentError, SignatureCache, is_segment};

/// How many of a record's parts are listed; a receipt record has up to a thousand.
const LISTED: usize = 100;

/// One record, or one transaction that was opened.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seen {
    /// `segment`, `receipts`, `refusal`, `missing`, `directory`, `query`, `transaction`, or `other`.
    pub kind: &'static str,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub time: Option<String>,
    /// Length of the record's value; of a transaction, of its payload.
    pub bytes: u64,
    /// Who signed it, by the directory, or as it claims.
    pub by: Option<String>,
    /// `valid`, or why not.
    pub check: String,
    pub about: String,
    pub fields: Value,
}

impl Seen {
    pub fn at(mut self, partition: i32, offset: i64, time: Time) -> Self {
        (self.partition, self.offset, self.time) = (Some(partition), Some(offset), Some(write_time(time)));
        self
    }
}

impl Row for Seen {
    const HEADS: &'static [&'static str] =
        &["at        ", "time                ", "kind       ", "bytes ", "by        ", "check", "about"];

    fn cells(&self) -> Vec<String> {
        let at = match (self.partition, self.offset) {
            (Some(partition), Some(offset)) => format!("{partition}/{offset}"),
            _ => "-".to_owned(),
        };
        let dash = || "-".to_owned();
        let cells = [
            at,
            self.time.clone().unwrap_or_else(dash),
            self.kind.to_owned(),
            self.bytes.to_string(),
            self.by.clone().unwrap_or_else(dash),
            self.check.clone(),
            self.about.clone(),
        ];
        cells.iter().map(|cell| printable(cell)).collect()
    }
}

/// What somebody else wrote, without what would move a terminal's cursor or turn its text round.
pub(super) fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Looks at records under a directory, if there is one.
pub(super) struct Viewer {
    directory: Option<Arc<Directory>>,
    directories: Directories,
    operator: Option<PublicKey>,
    cache: SignatureCache,
}

const VALID: &str = "valid";

impl Viewer {
    /// `operator` signs directories that travel as notices.
    pub fn new(known: Option<(Arc<Directory>, PublicKey)>) -> Self {
        let (directory, operator) = known.unzip();
        let directories = directory.iter().map(|directory| (directory.version, directory.clone())).collect();
        Self { directory, directories, operator, cache: SignatureCache::default() }
    }

    /// What a record is, by its first bytes, and what is in it.
    pub fn record(&self, key: &[u8], value: &Bytes) -> Seen {
        let mut seen = if is_segment(value) {
            self.segment(key, value)
        } else if value.starts_with(&NOTICE_MAGIC) {
            self.notice(value)
        } else if is_query(value) {
            self.query(value)
        } else {
            let magic = data_encoding::HEXLOWER.encode(value.get(..4).unwrap_or(value));
            Seen::of("other", "not a record of Sealcast".to_owned(), format!("begins with {magic}"), json!({}))
        };
        seen.bytes = value.len() as u64;
        if let Value::Object(fields) = &mut seen.fields {
            fields.insert("key".to_owned(), json!(data_encoding::HEXLOWER.encode(key)));
        }
        seen
    }

    fn destination(&self, tag: &DestinationTag) -> String {
        let named = self.directory.as_ref().and_then(|directory| directory.destination_by_tag(tag));
        named.map_or_else(|| tag.to_string(), |entry| entry.name.to_string())
    }

    fn segment(&self, key: &[u8], value: &Bytes) -> Seen {
        let segment = match Segment::parse(value) {
            Ok(segment) => segment,
            Err(error) => return Seen::of("segment", error.to_string(), "-".to_owned(), json!({})),
        };
        let header = segment.header().clone();
        let core = &header.core;
        let listed = self.directory.as_ref().and_then(|directory| directory.sender_by_key(&core.sender));
        let by = listed.map_or_else(|| core.sender.to_string(), |entry| entry.name.to_string());
        // The key that the header names is all that a signature can be checked with; whose it is, a directory says.
        let verified = PublicKey::check(&core.sender)
            .map_err(|_| SegmentError::Signature)
            .and_then(|sender| segment.verify(&self.cache, &sender));
        let check = match (&verified, &self.directory) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Some(directory)) if directory.environment != core.environment => {
                "of another environment".to_owned()
            }
            (Ok(verified), _) if !key.is_empty() && verified.id().to_bytes()[..] != *key => {
                "the record's key is not the segment's UUID".to_owned()
            }
            (Ok(_), Some(_)) if listed.is_none() => "the directory does not list the sender".to_owned(),
            (Ok(_), None) => "valid, and whose key it is needs a directory".to_owned(),
            (Ok(_), Some(_)) => VALID.to_owned(),
        };
        let to: Vec<_> = core.destinations.iter().map(|one| self.destination(&one.tag)).collect();
        let index = verified.as_ref().ok().map(|segment| segment.index());
        let about = format!(
            "to {}: parcel {}, stripe {}{}, shard {} of {}+{}",
            to.join(", "),
            core.parcel,
            header.stripe,
            if header.last { " (last)" } else { "" },
            index.map_or_else(|| "?".to_owned(), |index| index.to_string()),
            core.profile.k(),
            core.profile.m(),
        );
        let destinations: Vec<_> = core
            .destinations
            .iter()
            .map(|one| {
                json!({
                    "destination": self.destination(&one.tag), "destination_tag": one.tag.to_string(),
                    "key_id": one.key.to_string(), "sequence": one.sequence,
                })
            })
            .collect();
        let fields = json!({
            "suite": core.suite.to_string(), "k": core.profile.k(), "m": core.profile.m(),
            "shard_length": core.profile.shard_bytes(), "environment": core.environment.to_string(),
            "sender": core.sender.to_string(), "epoch": data_encoding::HEXLOWER.encode(&core.epoch.0),
            "parcel": core.parcel.to_string(), "expiry": write_time(core.expiry), "destinations": destinations,
            "stripe": header.stripe, "last": header.last, "stripe_length": header.length,
            "previous": header.previous.to_string(), "root": header.root.to_string(),
            "header_digest": verified.as_ref().ok().map(|segment| segment.digest().to_string()),
            "segment": verified.as_ref().ok().map(|segment| segment.id().to_string()),
            "shard_index": index, "shard_bytes": header.shard_bytes(),
        });
        Seen { by: Some(by), ..Seen::of("segment", check, about, fields) }
    }

    fn notice(&self, value: &Bytes) -> Seen {
        let notice = match Notice::decode(value) {
            Ok(notice) => notice,
            Err(error) => return Seen::of("other", error.to_string(), "a notice".to_owned(), json!({})),
        };
        match notice {
            Notice::Receipts(receipts) => {
                let (node, version) = (receipts.claimed_node().to_string(), receipts.claimed_directory());
                let group = self.destination(&receipts.destination());
                let statements: Vec<_> = receipts.claimed().cloned().collect();
                let about = format!("from {group} to sender {}: {}", receipts.sender(), counted(&statements));
                let listed: Vec<_> = statements.iter().take(LISTED).map(statement).collect();
                let fields = json!({
                    "destination": group, "destination_tag": receipts.destination().to_string(), "node": node,
                    "directory_version": version, "sender": receipts.sender().to_string(),
                    "statements": statements.len(), "listed": listed,
                });
                let check = self.said(receipts.verify(&self.directories).map(|_| ()));
                Seen { by: Some(node), ..Seen::of("receipts", check, about, fields) }
            }
            Notice::Refusal(signed) => {
                let said = signed.claimed().clone();
                let (node, version) = (signed.claimed_node().to_string(), signed.claimed_directory());
                let group = self.destination(&signed.destination());
                let about = format!(
                    "from {group} to sender {}: parcel {} is refused({})",
                    said.sender,
                    said.parcel,
                    said.reason.word()
                );
                let fields = json!({
                    "destination": group, "node": node, "directory_version": version, "sender": said.sender.to_string(),
                    "epoch": data_encoding::HEXLOWER.encode(&said.epoch.0), "parcel": said.parcel.to_string(),
                    "d": said.digest.to_string(), "reason": said.reason.word(),
                });
                let check = self.said(signed.verify(&self.directories).map(|_| ()));
                Seen { by: Some(node), ..Seen::of("refusal", check, about, fields) }
            }
            Notice::Missing(signed) => {
                let said = signed.claimed().clone();
                let (node, version) = (signed.claimed_node().to_string(), signed.claimed_directory());
                let group = self.destination(&signed.destination());
                let stripes: Vec<_> = said.stripes.iter().take(LISTED).map(range).collect();
                let about = format!(
                    "from {group} to sender {}: parcel {} lacks stripes {}",
                    said.sender,
                    said.parcel,
                    stripes.join(", ")
                );
                let fields = json!({
                    "destination": group, "node": node, "directory_version": version, "sender": said.sender.to_string(),
                    "epoch": data_encoding::HEXLOWER.encode(&said.epoch.0), "parcel": said.parcel.to_string(),
                    "stripes": stripes,
                });
                let check = self.said(signed.verify(&self.directories).map(|_| ()));
                Seen { by: Some(node), ..Seen::of("missing", check, about, fields) }
            }
            Notice::Directory(bytes) => self.directory(&bytes),
        }
    }

    /// A directory on its way to everybody.
    fn directory(&self, bytes: &Bytes) -> Seen {
        let Some(operator) = &self.operator else {
            let check = "needs the operator's key: name a configuration with --config".to_owned();
            return Seen::of("directory", check, format!("{} bytes", bytes.len()), json!({}));
        };
        match Directory::verify(bytes, operator, 1) {
            Err(error) => Seen::of("directory", error.to_string(), format!("{} bytes", bytes.len()), json!({})),
            Ok(directory) => {
                let valid_until = write_time(directory.valid_until);
                let about = format!("{} version {}, valid until {valid_until}", directory.name, directory.version);
                let fields = json!({
                    "environment": directory.name, "environment_id": directory.environment.to_string(),
                    "version": directory.version, "valid_until": valid_until,
                });
                Seen { by: Some("operator".to_owned()), ..Seen::of("directory", VALID.to_owned(), about, fields) }
            }
        }
    }

    fn query(&self, value: &Bytes) -> Seen {
        let Some(directory) = &self.directory else {
            let check = "needs a directory: name a configuration with --config".to_owned();
            return Seen::of("query", check, "-".to_owned(), json!({}));
        };
        let mut last = None;
        for entry in directory.destinations.values() {
            match Query::verify(value, entry.tag, directory) {
                Ok((sender, query)) => {
                    let about = format!("asks {} about {} transactions", entry.name, query.asked.len());
                    let asked = query.asked.iter().take(LISTED);
                    let asked: Vec<_> = asked
                        .map(|(transaction, deadline, _)| {
                            json!({"transaction": transaction.to_string(), "deadline": write_time(*deadline)})
                        })
                        .collect();
                    let fields = json!({
                        "destination": entry.name, "sender": sender.to_string(),
                        "epoch": data_encoding::HEXLOWER.encode(&query.epoch.0), "time": write_time(query.time),
                        "tickets": query.asked.len(), "listed": asked,
                    });
                    return Seen { by: Some(sender.to_string()), ..Seen::of("query", VALID.to_owned(), about, fields) };
                }
                Err(QueryError::OtherDestination { .. }) => {}
                Err(error) => last = Some(error.to_string()),
            }
        }
        let check = last.unwrap_or_else(|| "asks a destination that the directory does not list".to_owned());
        Seen::of("query", check, "-".to_owned(), json!({}))
    }

    /// What verifying a notice gave.
    fn said(&self, verified: Result<(), NoticeError>) -> String {
        match (verified, &self.directory) {
            (Ok(()), _) => VALID.to_owned(),
            (Err(NoticeError::UnknownDirectory { .. }), None) => {
                "needs a directory: name a configuration with --config".to_owned()
            }
            (Err(error), _) => error.to_string(),
        }
    }
}

impl Seen {
    pub fn of(kind: &'static str, check: String, about: String, fields: Value) -> Self {
        Self { kind, partition: None, offset: None, time: None, bytes: 0, by: None, check, about, fields }
    }
}

/// How many statements of which fate.
fn counted(statements: &[Statement]) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for statement in statements {
        *counts.entry(word(&statement.verdict)).or_default() += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(fate, count)| format!("{count} {fate}")).collect();
    counts.join(", ")
}

fn word(verdict: &Verdict) -> String {
    verdict.fate().map_or_else(|| "forgotten".to_owned(), |fate| fate.to_string())
}

fn statement(statement: &Statement) -> Value {
    json!({
        "transaction": statement.transaction.to_string(), "deadline": write_time(statement.deadline),
        "fate": word(&statement.verdict), "directory_version": statement.directory,
        "position": statement.verdict.decided().map(|decided| decided.position),
        "d": statement.verdict.decided().map(|decided| decided.digest.to_string()),
    })
}

fn range(range: &std::ops::RangeInclusive<u32>) -> String {
    match (*range.start(), *range.end()) {
        (first, u32::MAX) => format!("from {first} on"),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    }
}
