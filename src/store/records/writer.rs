//! The one thread that writes the record log: everything that waits becomes one write and one fdatasync.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use super::frame::{Body, TopicStart};
use super::index::{LogFile, Slot, Spot};
use super::{Command, Done, Offset, Options, RecordsError, Shared, Stored, TopicState};
use crate::seams::{DiskFile, Seams};

/// A batch stops taking what waits when it has this many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// What a batch's frames mean once they are durable.
enum Written {
    Record { topic: Arc<TopicState>, partition: u32, record: Stored, spot: Spot, done: Done },
    Topic { topic: TopicState, done: Done },
}

/// What becomes durable together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    written: Vec<Written>,
    next: BTreeMap<Slot, Offset>,
}

struct Writing {
    shared: Arc<Shared>,
    folder: PathBuf,
    seams: Seams,
    options: Options,
    active: Arc<LogFile>,
    length: u64,
    /// Held as long as the writer lives.
    _lock: Box<dyn DiskFile>,
}

/// Starts the writer on the last file, or on a first one. It ends when the queue's other end is dropped and all is written.
pub(super) fn start(
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Command>,
    folder: &Path,
    seams: &Seams,
    options: Options,
    length: Option<u64>,
    lock: Box<dyn DiskFile>,
) -> Result<JoinHandle<()>, RecordsError> {
    let last = shared.state().files.last_key_value().map(|(_, file)| file.clone());
    let (active, length) = match (last, length) {
        (Some(file), Some(length)) => (file, length),
        _ => begin(&shared, folder, seams, 1)?,
    };
    let options = Options { file_bytes: options.file_bytes.clamp(4 << 10, 1 << 30), ..options };
    let mut writing =
        Writing { shared, folder: folder.to_owned(), seams: seams.clone(), options, active, length, _lock: lock };
    let spawned = thread::Builder::new().name("records".to_owned()).spawn(move || {
        while let Ok(first) = queue.recv() {
            writing.batch(first, &queue);
        }
    });
    spawned.map_err(|error| RecordsError::Io {
        path: folder.to_owned(),
        action: "start its writer",
        cause: error.to_string(),
    })
}

/// Begins a file with where every partition stands, durable before anything relies on it.
fn begin(shared: &Shared, folder: &Path, seams: &Seams, number: u64) -> Result<(Arc<LogFile>, u64), RecordsError> {
    let path = LogFile::path(folder, number);
    let topics: Vec<TopicStart> = {
        let state = shared.state();
        let ends = |topic: &Arc<TopicState>| TopicStart {
            id: topic.id,
            name: topic.name.to_string(),
            next: topic.partitions.iter().map(|partition| *partition.end.borrow() as u64).collect(),
        };
        state.topics.values().map(ends).collect()
    };
    let time = seams.clock.now().0;
    let mut bytes = Vec::new();
    Body::Start { time, topics: topics.clone() }.put(&mut bytes, number, 0, 0);
    let create = || {
        let file = seams.disk.create_new(&path)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        seams.disk.sync_folder(folder)?;
        Ok(file)
    };
    let file = create().map_err(|error: std::io::Error| {
        // Best effort: an unused file would be removed at the next opening.
        let _ = seams.disk.remove(&path);
        RecordsError::Io { path: path.clone(), action: "begin the file", cause: error.to_string() }
    })?;
    let file = Arc::new(LogFile::begun(number, path, file, time, &topics));
    shared.state().files.insert(number, file.clone());
    Ok((file, bytes.len() as u64))
}

impl Writing {
    /// Writes `first` and whatever waits behind it.
    fn batch(&mut self, first: Command, queue: &mpsc::Receiver<Command>) {
        let failed = self.shared.state().failed.clone();
        if let Some(cause) = failed {
            let (Command::Append { done, .. } | Command::Create { done, .. }) = first;
            return done(Err(RecordsError::Failed { cause }));
        }
        let rotated = if self.length >= self.options.file_bytes { self.rotate() } else { Ok(()) };
        let mut batch = Batch::default();
        let mut command = Some(first);
        while let Some(next) = command {
            self.encode(next, &mut batch);
            command = if batch.bytes.len() < BATCH_BYTES { queue.try_recv().ok() } else { None };
        }
        let Batch { bytes, written, .. } = batch;
        if written.is_empty() {
            return;
        }
        match rotated.and_then(|()| self.write(&bytes)) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                written.into_iter().for_each(|written| self.publish(written));
            }
            Err(error) => {
                for Written::Record { done, .. } | Written::Topic { done, .. } in written {
                    done(Err(error.clone()));
                }
            }
        }
    }

    fn encode(&self, command: Command, batch: &mut Batch) {
        let at = batch.bytes.len();
        match command {
            Command::Append { topic, partition, key, value, done } => {
                let end = || topic.partitions.get(partition as usize).map_or(0, |partition| *partition.end.borrow());
                let next = batch.next.entry((topic.id, partition)).or_insert_with(end);
                let offset = *next;
                *next += 1;
                let time = self.seams.clock.now();
                let body = Body::Record {
                    topic: topic.id,
                    partition,
                    offset: offset as u64,
                    time: time.0,
                    key: &key,
                    value: &value,
                };
                body.put(&mut batch.bytes, self.active.number, self.length, self.length);
                let spot = Spot { at: (self.length as usize + at) as u32, length: (batch.bytes.len() - at) as u32 };
                let record = Stored { offset, time, key, value };
                batch.written.push(Written::Record { topic, partition, record, spot, done });
            }
            Command::Create { name, partitions, done } => {
                let taken = self.shared.state().topics.get(&name).map(|topic| topic.partitions.len());
                let mut created = batch.written.iter().filter_map(|before| match before {
                    Written::Topic { topic, .. } => Some(topic),
                    Written::Record { .. } => None,
                });
                let fresh = created.clone().count();
                let twice = created.find(|topic| topic.name == name).map(|topic| topic.partitions.len());
                if let Some(partitions) = taken.or(twice) {
                    return done(Err(RecordsError::TopicExists { topic: name.to_string(), partitions }));
                }
                let highest = self.shared.state().topics.values().map(|topic| topic.id).max().unwrap_or(0);
                let id = highest + 1 + fresh as u32;
                let body = Body::Topic { id, name: name.to_string(), partitions };
                body.put(&mut batch.bytes, self.active.number, self.length, self.length);
                let topic = TopicState::new(id, name, &vec![0; partitions as usize]);
                batch.written.push(Written::Topic { topic, done });
            }
        }
    }

    /// Writes and syncs. When only the write failed (no space), the file is cut back and later batches may succeed; when
    /// the sync failed, nobody knows what is durable, and the log takes no more.
    fn write(&self, bytes: &[u8]) -> Result<(), RecordsError> {
        let failed = |action, error: std::io::Error| RecordsError::Io {
            path: self.active.path.clone(),
            action,
            cause: error.to_string(),
        };
        if let Err(error) = self.active.file.write_at(bytes, self.length) {
            let error = failed("write", error);
            return match self.active.file.set_length(self.length) {
                Ok(()) => Err(error),
                Err(_) => Err(self.fail(&error)),
            };
        }
        self.active.file.sync().map_err(|error| self.fail(&failed("make durable", error)))
    }

    fn fail(&self, error: &RecordsError) -> RecordsError {
        let cause = error.to_string();
        tracing::error!(%cause, "the record log failed; it must be opened again");
        self.shared.state().failed = Some(cause.clone());
        RecordsError::Failed { cause }
    }

    fn publish(&self, written: Written) {
        match written {
            Written::Record { topic, partition, record, spot, done } => {
                let offset = record.offset;
                self.active.note((topic.id, partition), spot);
                if let Some(partition) = topic.partitions.get(partition as usize) {
                    partition.remember(record);
                    partition.end.send_replace(offset + 1);
                }
                done(Ok(offset));
            }
            Written::Topic { topic, done } => {
                self.shared.state().topics.insert(topic.name.clone(), Arc::new(topic));
                done(Ok(0));
            }
        }
    }

    /// Goes on in a new file and removes those whose records have all passed the retention.
    fn rotate(&mut self) -> Result<(), RecordsError> {
        let (active, length) = begin(&self.shared, &self.folder, &self.seams, self.active.number + 1)?;
        (self.active, self.length) = (active, length);
        let Some(retention) = self.options.retention else { return Ok(()) };
        let now = self.seams.clock.now();
        let mut expired = Vec::new();
        {
            let mut state = self.shared.state();
            // The next file's beginning is no earlier than this file's youngest record.
            while let Some(next) = state.files.values().nth(1)
                && next.begun.after(retention) < now
                && let Some((_, oldest)) = state.files.pop_first()
            {
                expired.push(oldest);
            }
            state.settle_low();
        }
        for file in expired {
            if let Err(error) = self.seams.disk.remove(&file.path) {
                tracing::warn!(path = %file.path.display(), %error, "cannot remove an expired file of the record log");
            }
        }
        Ok(())
    }
}
