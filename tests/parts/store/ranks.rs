//! Where the last so many committed rows begin, without reading them.

use super::*;

#[tokio::test]
async fn where_the_last_rows_begin_is_found_however_many_there_are() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    assert_eq!(store.snapshot().unwrap().first_of_last(Position::default(), 1).unwrap(), None);
    for number in 1..=5 {
        let new = parcel(&store, number, &[0; 150], None);
        let mut manifest = new.manifest.clone();
        store.stage(new).await.unwrap();
        // Every seventh is rejected.
        for item in manifest.items.iter_mut().step_by(7) {
            item.deadline = Time(NOW.0 + 1_000_000_000_000);
        }
        apply(&store, 1 + number, commit(&manifest, NOW)).await;
    }
    settle(&store).await;
    let check = |store: &GroupStore| {
        let snapshot = store.snapshot().unwrap();
        let end = Position { index: u64::MAX, number: u32::MAX };
        let rows = snapshot.rows_after(Position::default(), end, usize::MAX).unwrap();
        let committed: Vec<_> = rows.iter().filter(|row| row.is_committed()).collect();
        assert_eq!(committed.len() as u64, snapshot.counts().unwrap().committed);
        assert!(committed.len() > 600 && committed.len() < rows.len());
        for through in [1, 2, 255, 256, 257, 511, 512, committed.len()] {
            let last = committed[through - 1].position;
            for count in [1, 2, 100, 256, 257, through as u64 - 1, through as u64, u64::MAX] {
                let wanted = (count > 0).then(|| through.saturating_sub(usize::try_from(count).unwrap()));
                let found = snapshot.first_of_last(last, count).unwrap();
                assert_eq!(found.as_ref(), wanted.map(|at| committed[at]), "the last {count} of {through}");
            }
        }
    };
    check(&store);
    check(&open(&disk.crash()));
}
