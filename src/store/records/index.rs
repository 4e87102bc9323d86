//! Where each record lies, file by file, and reading it from there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::frame::{Body, HEADER, Header, MAGIC, RECORD_PREFIX, TopicStart, Window};
use super::{Offset, RecordsError, Stored};
use crate::core::id::Time;
use crate::seams::DiskFile;

/// A topic's id and a partition's number.
pub(super) type Slot = (u32, u32);

/// Where a frame lies in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub at: u32,
    pub length: u32,
}

type Spots = BTreeMap<Slot, Vec<Spot>>;

/// One file of the log.
#[derive(Debug)]
pub(super) struct LogFile {
    pub number: u64,
    pub path: PathBuf,
    pub file: Box<dyn DiskFile>,
    /// When the file was begun: no record of an earlier file is younger.
    pub begun: Time,
    /// The offset with which each partition goes on in this file; a partition that is not here was created in it, at 0.
    pub starts: BTreeMap<Slot, Offset>,
    /// Where the records lie; `None` until a file that was not written by this process is first read.
    spots: Mutex<Option<Spots>>,
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> RecordsError {
    let path = path.to_owned();
    move |error| RecordsError::Io { path, action, cause: error.to_string() }
}

impl LogFile {
    /// The path of a file of the log.
    pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("{number:012}.records"))
    }

    /// A file that was just begun: nothing in it but its start.
    pub(super) fn begun(number: u64, path: PathBuf, file: Box<dyn DiskFile>, time: u64, topics: &[TopicStart]) -> Self {
        Self { number, path, file, begun: Time(time), starts: starts_of(topics), spots: Mutex::new(Some(Spots::new())) }
    }

    /// Opens an existing file by its first frame. `None` when that frame is not whole: the file was begun and never used.
    pub(super) fn open(
        number: u64,
        path: PathBuf,
        file: Box<dyn DiskFile>,
    ) -> Result<Option<(Self, Vec<TopicStart>)>, RecordsError> {
        let length = file.length().map_err(io(&path, "ask its length"))?;
        let mut window = Window::new(file.as_ref(), length);
        let start = read_frame(&mut window, number, 0).map_err(io(&path, "read"))?.map(|(_, body)| body);
        let Some(Body::Start { time, topics }) = start else { return Ok(None) };
        drop(window);
        let starts = starts_of(&topics);
        let opened = Self { number, path, file, begun: Time(time), starts, spots: Mutex::new(None) };
        Ok(Some((opened, topics)))
    }

    /// Checks every frame of the last file, cuts off what a crash left torn, makes the rest durable, and gives its length.
    /// `topics` are those of its start; they grow and their ends move on. Errors: [`RecordsError::Damaged`] when an acknowledged frame is not whole.
    pub(super) fn scan(&self, topics: &mut Vec<TopicStart>) -> Result<u64, RecordsError> {
        let length = self.file.length().map_err(io(&self.path, "ask its length"))?;
        let mut window = Window::new(self.file.as_ref(), length);
        let mut spots = Spots::new();
        let mut at = 0;
        while let Some((frame, body)) = read_frame(&mut window, self.number, at).map_err(io(&self.path, "read"))? {
            let wrong = |cause: &str| self.damaged(at, cause);
            match body {
                Body::Start { .. } if at == 0 => {}
                Body::Start { .. } => return Err(wrong("a second start")),
                Body::Topic { id, name, partitions } => {
                    topics.push(TopicStart { id, name, next: vec![0; partitions as usize] });
                }
                Body::Record { topic, partition, offset, .. } => {
                    let next = topics.iter_mut().find(|known| known.id == topic);
                    let next = next.and_then(|known| known.next.get_mut(partition as usize));
                    let next = next.ok_or_else(|| wrong("a record of an unknown partition"))?;
                    if *next != offset {
                        return Err(wrong("a record out of order"));
                    }
                    *next += 1;
                    spots.entry((topic, partition)).or_default().push(frame.spot(at));
                }
            }
            at += frame.size();
        }
        if at < length {
            self.torn_or_damaged(at, length, &mut window)?;
            self.file.set_length(at).map_err(io(&self.path, "cut its torn end"))?;
        }
        // What a killed process had written and not synced is whole here, but perhaps only in the system's memory.
        self.file.sync().map_err(io(&self.path, "make durable"))?;
        *self.spots.lock().unwrap_or_else(PoisonError::into_inner) = Some(spots);
        Ok(at)
    }

    /// A frame at `bad` is not whole. If any whole frame behind it was written when `bad` was already durable, then `bad`
    /// was acknowledged and is damage; else a crash tore it before anybody relied on it.
    fn torn_or_damaged(&self, bad: u64, length: u64, window: &mut Window<'_>) -> Result<(), RecordsError> {
        let mut at = bad;
        while let Some(bytes) = window.get(at, MAGIC.len()).map_err(io(&self.path, "read"))? {
            if bytes == MAGIC {
                let found = read_frame(window, self.number, at).map_err(io(&self.path, "read"))?;
                if found.is_some_and(|(frame, _)| frame.settled > bad) {
                    return Err(self.damaged(bad, "an acknowledged record does not match its checksum"));
                }
            }
            at += 1;
            if at >= length {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn damaged(&self, at: u64, cause: &str) -> RecordsError {
        RecordsError::Damaged { path: self.path.clone(), at, cause: cause.to_owned() }
    }

    /// Notes a record that was written and synced.
    pub(super) fn note(&self, slot: Slot, spot: Spot) {
        let mut spots = self.spots.lock().unwrap_or_else(PoisonError::into_inner);
        spots.get_or_insert_default().entry(slot).or_default().push(spot);
    }

    /// Where up to `most` bytes of records lie, from the `skip`th record of a partition in this file on.
    pub(super) fn spots(&self, slot: Slot, skip: usize, most: usize) -> Result<Vec<Spot>, RecordsError> {
        let mut spots = self.spots.lock().unwrap_or_else(PoisonError::into_inner);
        let spots = match spots.as_ref() {
            Some(spots) => spots,
            None => spots.insert(self.walk()?),
        };
        let mut taken = 0usize;
        let all = spots.get(&slot).map(Vec::as_slice).unwrap_or_default();
        Ok(all
            .iter()
            .skip(skip)
            .take_while(|spot| {
                let first = taken == 0;
                taken = taken.saturating_add(spot.length as usize);
                first || taken <= most
            })
            .copied()
            .collect())
    }

    /// The places of a sealed file's records, from the frames' headers; each record's checksum is checked when it is read.
    fn walk(&self) -> Result<Spots, RecordsError> {
        let length = self.file.length().map_err(io(&self.path, "ask its length"))?;
        let mut window = Window::new(self.file.as_ref(), length);
        let mut spots = Spots::new();
        let mut at = 0;
        while at < length {
            let bytes = window.get(at, HEADER).map_err(io(&self.path, "read"))?;
            let Some(frame) = bytes.and_then(Header::parse) else {
                return Err(self.damaged(at, "no frame stands here"));
            };
            let frame = Frame::of(&frame);
            if frame.record {
                let fixed = window.get(at + HEADER as u64, RECORD_PREFIX).map_err(io(&self.path, "read"))?;
                let slot = fixed.and_then(|fixed| Body::parse_slot(fixed).ok());
                let slot = slot.ok_or_else(|| self.damaged(at, "a record without a partition"))?;
                spots.entry(slot).or_default().push(frame.spot(at));
            }
            at += frame.size();
        }
        Ok(spots)
    }

    /// Reads the record at `spot` and checks that it is whole and the one that was asked for.
    pub(super) fn read(&self, slot: Slot, offset: Offset, spot: Spot) -> Result<Stored, RecordsError> {
        let at = u64::from(spot.at);
        let mut bytes = vec![0; spot.length as usize];
        self.file.read_at(&mut bytes, at).map_err(io(&self.path, "read"))?;
        let parsed = bytes.split_at_checked(HEADER).and_then(|(header, body)| {
            let header = Header::parse(header)?;
            header.fits(self.number, at, body).then_some(())?;
            match Body::parse(header.kind, body) {
                Ok(Body::Record { topic, partition, offset: stored, time, key, .. }) => {
                    ((topic, partition) == slot && stored == offset as u64).then_some((time, key.len()))
                }
                _ => None,
            }
        });
        let (time, key) = parsed.ok_or_else(|| self.damaged(at, "a record does not match its checksum"))?;
        let mut bytes = Bytes::from(bytes);
        let mut rest = bytes.split_off(HEADER + RECORD_PREFIX);
        let value = rest.split_off(key);
        Ok(Stored { offset, time: Time(time), key: rest, value })
    }
}

fn starts_of(topics: &[TopicStart]) -> BTreeMap<Slot, Offset> {
    let slots = topics.iter().flat_map(|topic| {
        let numbered = topic.next.iter().enumerate();
        numbered.map(move |(partition, next)| ((topic.id, partition as u32), *next as Offset))
    });
    slots.collect()
}

/// What walking over a frame needs to know of it.
#[derive(Debug, Clone, Copy)]
struct Frame {
    length: usize,
    settled: u64,
    record: bool,
}

impl Frame {
    fn of(header: &Header) -> Self {
        Self { length: header.length, settled: header.settled, record: header.is_record() }
    }

    fn size(&self) -> u64 {
        (HEADER + self.length) as u64
    }

    fn spot(&self, at: u64) -> Spot {
        Spot { at: at as u32, length: (HEADER + self.length) as u32 }
    }
}

/// The whole frame at `at`, or `None` when none stands there.
fn read_frame<'w>(window: &'w mut Window<'_>, file: u64, at: u64) -> std::io::Result<Option<(Frame, Body<'w>)>> {
    let Some(header) = window.get(at, HEADER)?.and_then(Header::parse) else { return Ok(None) };
    let Some(body) = window.get(at + HEADER as u64, header.length)? else { return Ok(None) };
    if !header.fits(file, at, body) {
        return Ok(None);
    }
    // A whole frame that cannot be understood was written by a later version: it must not pass for torn.
    let body = Body::parse(header.kind, body).map_err(std::io::Error::other)?;
    Ok(Some((Frame::of(&header), body)))
}
