//! How the record log looks on disk: one frame after the other, each with its own checksum.
//!
//! ```text
//! magic "SCRL" | kind u8 | body length u32 | settled u64 | checksum 16 | body
//! ```
//!
//! `settled` is how much of the file was durable when the frame was written: a frame that claims more than the place of a
//! damaged one proves that the damaged one was acknowledged, so it is damage and not the torn end of a crash.

use std::io;

use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer, label};

use crate::seams::DiskFile;

/// What each frame starts with.
pub(super) const MAGIC: [u8; 4] = *b"SCRL";
/// Bytes before the body.
pub(super) const HEADER: usize = 33;
/// Bytes of a record's body before its key: topic, partition, offset, time, key length.
pub(super) const RECORD_PREFIX: usize = 26;
/// Longest body: the longest record, or the ends of some 300,000 partitions.
pub(super) const BODY: usize = 4 << 20;
/// Most partitions of a topic: each costs eight bytes at the start of every file.
pub(super) const PARTITIONS: u32 = 1024;

const START: u8 = 1;
const TOPIC: u8 = 2;
const RECORD: u8 = 3;

/// A topic and how far each of its partitions had come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicStart {
    pub id: u32,
    pub name: String,
    pub next: Vec<u64>,
}

/// A frame's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// The first frame of a file: when it was begun, and where every partition stood.
    Start { time: u64, topics: Vec<TopicStart> },
    /// A new topic, all of its partitions empty.
    Topic { id: u32, name: String, partitions: u32 },
    /// A record.
    Record { topic: u32, partition: u32, offset: u64, time: u64, key: &'a [u8], value: &'a [u8] },
}

/// A frame's header as it was read: nothing in it is believed before the checksum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub kind: u8,
    pub length: usize,
    pub settled: u64,
    checksum: [u8; 16],
}

fn checksum(file: u64, at: u64, kind: u8, settled: u64, body: &[&[u8]]) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    let length: usize = body.iter().map(|part| part.len()).sum();
    hash.update(label::RECORDS).update(&file.to_be_bytes()).update(&at.to_be_bytes()).update(&[kind]);
    hash.update(&settled.to_be_bytes()).update(&(length as u64).to_be_bytes());
    for part in body {
        hash.update(part);
    }
    let mut short = [0; 16];
    hash.finalize_xof().fill(&mut short);
    short
}

impl Header {
    /// Takes a header apart; `None` when these are not a frame's bytes.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let parsed = (|| {
            let magic = reader.array::<4>("magic")?;
            let kind = reader.u8("kind")?;
            let length = reader.u32("length")? as usize;
            let settled = reader.u64("settled")?;
            let checksum = reader.array("checksum")?;
            Ok::<_, WireError>((magic, Self { kind, length, settled, checksum }))
        })();
        match parsed {
            Ok((MAGIC, header)) if header.length <= BODY => Some(header),
            _ => None,
        }
    }

    /// Whether the body is a record.
    pub(super) fn is_record(&self) -> bool {
        self.kind == RECORD
    }

    /// Whether this is the header of `body`, written at this place of this file.
    pub(super) fn fits(&self, file: u64, at: u64, body: &[u8]) -> bool {
        body.len() == self.length && checksum(file, at, self.kind, self.settled, &[body]) == self.checksum
    }
}

impl<'a> Body<'a> {
    /// Takes a body apart. Errors: what does not fit the kind.
    pub(super) fn parse(kind: u8, bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let body = match kind {
            START => {
                let time = reader.u64("time")?;
                let mut topics = Vec::new();
                for _ in 0..reader.u32("topics")? {
                    let id = reader.u32("topic")?;
                    let name = topic_name(&mut reader)?;
                    let mut next = Vec::new();
                    for _ in 0..reader.u32("partitions")? {
                        next.push(reader.u64("next offset")?);
                    }
                    topics.push(TopicStart { id, name, next });
                }
                Self::Start { time, topics }
            }
            TOPIC => {
                let id = reader.u32("topic")?;
                let name = topic_name(&mut reader)?;
                Self::Topic { id, name, partitions: reader.u32("partitions")? }
            }
            RECORD => {
                let (topic, partition) = (reader.u32("topic")?, reader.u32("partition")?);
                let (offset, time) = (reader.u64("offset")?, reader.u64("time")?);
                let key = reader.short_bytes(limits::KEY_BYTES, "key")?;
                let value = reader.take(reader.left(), "value")?;
                Self::Record { topic, partition, offset, time, key, value }
            }
            _ => return Err(WireError::Unknown { field: "kind", value: kind.into() }),
        };
        reader.finish("frame")?;
        Ok(body)
    }

    /// Topic and partition of a record, from the first bytes of its body.
    pub(super) fn parse_slot(bytes: &[u8]) -> Result<(u32, u32), WireError> {
        let mut reader = Reader::new(bytes);
        Ok((reader.u32("topic")?, reader.u32("partition")?))
    }

    /// Appends the frame to a batch that will stand at `batch_at` of `file`; `into` is the batch so far.
    pub(super) fn put(&self, into: &mut Vec<u8>, file: u64, batch_at: u64, settled: u64) {
        let mut fixed = Writer::with_capacity(RECORD_PREFIX);
        let (kind, tail): (u8, [&[u8]; 2]) = match self {
            Self::Start { time, topics } => {
                fixed.u64(*time).u32(topics.len() as u32);
                for topic in topics {
                    fixed.u32(topic.id).short_bytes(topic.name.as_bytes()).u32(topic.next.len() as u32);
                    for next in &topic.next {
                        fixed.u64(*next);
                    }
                }
                (START, [&[], &[]])
            }
            Self::Topic { id, name, partitions } => {
                fixed.u32(*id).short_bytes(name.as_bytes()).u32(*partitions);
                (TOPIC, [&[], &[]])
            }
            Self::Record { topic, partition, offset, time, key, value } => {
                fixed.u32(*topic).u32(*partition).u64(*offset).u64(*time).u16(key.len() as u16);
                (RECORD, [*key, *value])
            }
        };
        let [key, value] = tail;
        let at = batch_at + into.len() as u64;
        let sum = checksum(file, at, kind, settled, &[fixed.as_slice(), key, value]);
        let length = fixed.as_slice().len() + key.len() + value.len();
        into.reserve(HEADER + length);
        into.extend_from_slice(&MAGIC);
        into.push(kind);
        into.extend_from_slice(&(length as u32).to_be_bytes());
        into.extend_from_slice(&settled.to_be_bytes());
        into.extend_from_slice(&sum);
        into.extend_from_slice(fixed.as_slice());
        into.extend_from_slice(key);
        into.extend_from_slice(value);
    }
}

fn topic_name(reader: &mut Reader<'_>) -> Result<String, WireError> {
    let bytes = reader.short_bytes(super::TOPIC_NAME_BYTES, "topic name")?;
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| WireError::Invalid { field: "topic name", expected: "UTF-8" })
}

/// Reads a file forward through a window, so that small frames do not cost a system call each.
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    const SPAN: u64 = 1 << 20;

    pub(super) fn new(file: &'a dyn DiskFile, length: u64) -> Self {
        Self { file, length, start: 0, bytes: Vec::new() }
    }

    /// `count` bytes at `at`; `None` past the end of the file.
    pub(super) fn get(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        let end = at.saturating_add(count as u64);
        if end > self.length {
            return Ok(None);
        }
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let span = (self.length - at).min(Self::SPAN.max(count as u64));
            self.bytes.resize(span as usize, 0);
            self.file.read_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(self.bytes.get(from..from + count))
    }
}
