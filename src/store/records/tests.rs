//! Crashes, damage, retention and full disks, seen through the log's own interface.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::core::id::Time;
use crate::seams::{DiskHook, HookedDisk, ManualClock};

const TOPIC: &str = "topic";

fn open(folder: &Path) -> RecordLog {
    RecordLog::open(folder, &Seams::real(), Options::default()).expect("it opens")
}

fn create(log: &RecordLog, partitions: u32) {
    let (done, created) = mpsc::channel();
    log.create(TOPIC, partitions, Box::new(move |answer| done.send(answer).expect("somebody waits")));
    created.recv().expect("an answer").expect("it is created");
}

fn append(log: &RecordLog, partition: i32, value: &[u8]) -> Result<Offset, RecordsError> {
    let (done, appended) = mpsc::channel();
    let done: Done = Box::new(move |answer| done.send(answer).expect("somebody waits"));
    log.append(TOPIC, partition, Bytes::from_static(b"key"), Bytes::copy_from_slice(value), done);
    appended.recv().expect("an answer")
}

fn values(log: &RecordLog, partition: i32) -> Vec<Vec<u8>> {
    let low = log.read(TOPIC, partition, 0, 0).map_or_else(
        |error| match error {
            RecordsError::OutOfRange { low, .. } => low,
            other => panic!("{other}"),
        },
        |read| read.low,
    );
    let read = log.read(TOPIC, partition, low, usize::MAX).expect("a read");
    read.records.into_iter().map(|record| record.value.to_vec()).collect()
}

fn only_file(folder: &Path) -> PathBuf {
    LogFile::path(folder, 1)
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    create(&log, 2);
    append(&log, 1, b"first").expect("appended");
    let whole = fs::metadata(only_file(folder.path())).expect("a file").len();
    append(&log, 1, &[7; 5000]).expect("appended");
    drop(log);
    let written = fs::metadata(only_file(folder.path())).expect("a file").len();
    for cut in [whole + 1, whole + 40, written - 1] {
        fs::OpenOptions::new()
            .write(true)
            .open(only_file(folder.path()))
            .and_then(|file| file.set_len(cut))
            .expect("cut");
        let log = open(folder.path());
        assert_eq!(values(&log, 1), [b"first".to_vec()]);
        assert_eq!(append(&log, 1, &[7; 5000]), Ok(1));
        assert_eq!(values(&log, 1).len(), 2);
    }
}

#[test]
fn damage_to_an_acknowledged_record_is_no_torn_tail() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    create(&log, 1);
    append(&log, 0, b"to be damaged").expect("appended");
    append(&log, 0, b"later").expect("appended");
    drop(log);
    let mut bytes = fs::read(only_file(folder.path())).expect("a file");
    let at = bytes.windows(5).position(|window| window == b"to be").expect("it is there");
    bytes[at] ^= 1;
    fs::write(only_file(folder.path()), bytes).expect("written");
    let refused = RecordLog::open(folder.path(), &Seams::real(), Options::default());
    assert!(matches!(refused, Err(RecordsError::Damaged { .. })), "{refused:?}");
}

#[test]
fn a_folder_serves_one_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    let second = RecordLog::open(folder.path(), &Seams::real(), Options::default());
    assert_eq!(second.err(), Some(RecordsError::InUse { folder: folder.path().to_owned() }));
    drop(log);
    open(folder.path());
}

#[test]
fn many_files_read_as_one_log_and_retention_takes_the_oldest() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(ManualClock::new(Time(1_000_000)));
    let seams = Seams { clock: clock.clone(), ..Seams::real() };
    let options = Options { file_bytes: 4 << 10, retention: Some(Duration::from_secs(60)) };
    let log = RecordLog::open(folder.path(), &seams, options).expect("it opens");
    create(&log, 2);
    append(&log, 1, b"a partition that rests").expect("appended");
    for number in 0..50u8 {
        append(&log, 0, &[number; 1000]).expect("appended");
    }
    assert_eq!(values(&log, 0).len(), 50);
    let next = log.read(TOPIC, 0, 20, 3000).expect("a read");
    assert_eq!(next.records.first().map(|record| record.offset), Some(20));
    drop(log);

    let log = RecordLog::open(folder.path(), &seams, options).expect("it opens");
    assert_eq!(values(&log, 0), (0..50u8).map(|number| vec![number; 1000]).collect::<Vec<_>>());
    clock.advance(Duration::from_secs(61));
    for number in 50..60u8 {
        append(&log, 0, &[number; 1000]).expect("appended");
    }
    let kept = values(&log, 0);
    assert!(kept.len() < 60 && kept.last() == Some(&vec![59; 1000]), "{} kept", kept.len());
    let gone = log.read(TOPIC, 1, 0, 100);
    assert_eq!(gone, Err(RecordsError::OutOfRange { asked: 0, low: 1, end: 1 }));
    drop(log);
    let log = RecordLog::open(folder.path(), &seams, options).expect("it opens");
    assert_eq!(values(&log, 0), kept);
    assert_eq!(append(&log, 1, b"goes on"), Ok(1));
}

/// Lets files refuse to write (1) or to sync (2).
#[derive(Clone)]
struct Faulty(Arc<AtomicU8>);

impl Faulty {
    fn fails(&self, when: u8) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) == when { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl DiskHook for Faulty {
    fn write(&self, _: &Path, bytes: &[u8], write: &dyn Fn(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.fails(1) {
            Ok(()) => write(bytes),
            Err(full) => write(&bytes[..bytes.len() / 2]).and(Err(full)),
        }
    }

    fn sync(&self, path: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        // Folders sync whatever the files do.
        if path.is_dir() { sync() } else { self.fails(2).and_then(|()| sync()) }
    }
}

#[test]
fn a_full_disk_passes_and_a_failed_sync_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let fault = Arc::new(AtomicU8::new(0));
    let seams = Seams { disk: Arc::new(HookedDisk::real(Faulty(fault.clone()))), ..Seams::real() };
    let log = RecordLog::open(folder.path(), &seams, Options::default()).expect("it opens");
    create(&log, 1);
    append(&log, 0, b"one").expect("appended");
    fault.store(1, Ordering::SeqCst);
    let full = append(&log, 0, b"no room").expect_err("the disk is full");
    assert!(full.retryable(), "{full}");
    fault.store(0, Ordering::SeqCst);
    assert_eq!(append(&log, 0, b"two"), Ok(1));
    fault.store(2, Ordering::SeqCst);
    assert!(matches!(append(&log, 0, b"lost?"), Err(RecordsError::Failed { .. })));
    fault.store(0, Ordering::SeqCst);
    assert!(matches!(append(&log, 0, b"not before a restart"), Err(RecordsError::Failed { .. })));
    drop(log);
    let kept = values(&open(folder.path()), 0);
    assert_eq!(kept[..2], [b"one".to_vec(), b"two".to_vec()]);
}

#[test]
fn what_is_read_never_reaches_beyond_the_end_that_the_next_read_is_held_against() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    create(&log, 1);
    let appending = log.clone();
    let writer = std::thread::spawn(move || {
        for number in 0..300u32 {
            append(&appending, 0, &number.to_be_bytes()).expect("appended");
        }
    });
    // One reads what lies in memory, one from the disk; both as fast as they can, so that they meet the writer in between.
    let reader = |recent: bool| {
        let mut at = 0;
        while at < 300 {
            let read = match recent.then(|| log.read_recent(TOPIC, 0, at, usize::MAX)) {
                Some(Ok(Some(read))) => read,
                Some(Ok(None)) => panic!("all of it is in memory"),
                Some(Err(error)) => panic!("recent: {error}"),
                None => log.read(TOPIC, 0, at, usize::MAX).unwrap_or_else(|error| panic!("disk: {error}")),
            };
            at = read.records.last().map_or(at, |last| last.offset + 1);
            assert!(at <= read.end, "{at} of {}", read.end);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| reader(true));
        scope.spawn(|| reader(false));
    });
    writer.join().expect("it wrote");

    // The moment between: the record is there, and the end has not moved.
    let topic = log.topic(TOPIC).expect("it is there");
    let (_, partition) = topic.partition(0).expect("it is there");
    partition.remember(Stored { offset: 300, time: Time(1), key: Bytes::new(), value: Bytes::new() });
    let read = log.read_recent(TOPIC, 0, 299, usize::MAX).expect("a read").expect("from memory");
    assert_eq!((read.records.len(), read.end), (1, 300));
}
