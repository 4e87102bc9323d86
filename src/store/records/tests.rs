//! Crashes, damage, retention and full disks, seen through the log's own interface.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::core::id::Time;
use crate::seams::{Disk, ManualClock, RealDisk};

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

/// A disk whose files refuse to write (1) or to sync (2).
struct FaultyDisk(Arc<AtomicU8>);

#[derive(Debug)]
struct FaultyFile(Box<dyn DiskFile>, Arc<AtomicU8>);

impl FaultyFile {
    fn fails(&self, when: u8) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) == when { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Err(full) = self.fails(1) {
            self.0.write_at(&bytes[..bytes.len() / 2], at)?;
            return Err(full);
        }
        self.0.write_at(bytes, at)
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_at(into, at)
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }
    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }
    fn sync(&self) -> io::Result<()> {
        self.fails(2).and_then(|()| self.0.sync())
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile(RealDisk.create_new(path)?, self.0.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile(RealDisk.open(path)?, self.0.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        RealDisk.make_folder(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(folder)
    }
    fn free(&self, folder: &Path) -> io::Result<u64> {
        RealDisk.free(folder)
    }
}

#[test]
fn a_full_disk_passes_and_a_failed_sync_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let fault = Arc::new(AtomicU8::new(0));
    let seams = Seams { disk: Arc::new(FaultyDisk(fault.clone())), ..Seams::real() };
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
