//! The embedded transport: conformance, and what it keeps when its process dies.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sealcast::core::id::{DestinationName, EnvironmentName};
use sealcast::seams::Seams;
use sealcast::transport::embedded::{Embedded, EmbeddedOptions};
use sealcast::transport::{AnyTransport, Topic, Transport, TransportOptions};

use super::conformance::{append, collect, conforms, partition, record};

/// Set for the process that is to be killed: the folder it writes to.
const CHILD: &str = "SEALCAST_TEST_EMBEDDED_CHILD";

pub fn open(folder: &Path) -> AnyTransport {
    let options = TransportOptions::Embedded(EmbeddedOptions::new(folder));
    AnyTransport::open(&options, &Seams::real()).expect("it opens")
}

fn kept() -> Topic {
    let environment = EnvironmentName::new("test").expect("a name");
    Topic::segments(&environment, &DestinationName::new("kept").expect("a name"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    conforms(&open(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_and_topics_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = EmbeddedOptions { file_bytes: 64 << 10, ..EmbeddedOptions::new(folder.path()) };
    let topic = kept();
    for start in 0..4i64 {
        let transport = Embedded::open(&options, &Seams::real()).expect("it opens");
        if start == 0 {
            transport.create_topic(&topic, 3).await.expect("created");
        }
        let to = partition(&topic, 2);
        for number in 0..30 {
            let offset = append(&transport, &to, record(b"key", &vec![start as u8; 3000])).await;
            assert_eq!(offset, start * 30 + number);
        }
        let found = collect(&transport, &to, 0, (start as usize + 1) * 30).await;
        let starts: Vec<_> = found.iter().filter_map(|fetched| fetched.value.as_ref()?.first().copied()).collect();
        assert_eq!(starts, (0..=start as u8).flat_map(|start| [start; 30]).collect::<Vec<_>>());
    }
}

/// Not a test of its own: the process that the next one kills. Prints every offset that was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_appends_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let transport = Embedded::open(&EmbeddedOptions::new(folder), &Seams::real()).expect("it opens");
    let topic = kept();
    if transport.partitions(&topic).is_empty() {
        transport.create_topic(&topic, 3).await.expect("created");
    }
    let appender = |number: i32| {
        let (transport, to) = (&transport, partition(&topic, number));
        async move {
            loop {
                let offset = append(transport, &to, record(b"key", &[number as u8; 20_000])).await;
                println!("\nacknowledged {number} {offset}");
            }
        }
    };
    tokio::join!(appender(0), appender(1), appender(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut acknowledged = [-1i64; 3];
    for run in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["child_that_appends_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.expect("a line");
            let Some(told) = line.strip_prefix("acknowledged ") else { continue };
            let (number, offset) = told.split_once(' ').expect("two numbers");
            let offset: i64 = offset.parse().expect("an offset");
            let last = &mut acknowledged[number.parse::<usize>().expect("a partition")];
            *last = offset.max(*last);
            seen += 1;
            if seen == 100 + run * 37 {
                child.kill().expect("killed");
            }
        }
        child.wait().expect("ended");
        let transport = Embedded::open(&EmbeddedOptions::new(folder.path()), &Seams::real()).expect("it opens");
        for (number, last) in acknowledged.iter().enumerate() {
            let from = partition(&kept(), number as i32);
            let found = collect(&transport, &from, 0, *last as usize + 1).await;
            let whole = |fetched: &sealcast::transport::Fetched| {
                fetched
                    .value
                    .as_ref()
                    .is_some_and(|value| value.len() == 20_000 && value.iter().all(|b| *b == number as u8))
            };
            assert!(
                found.iter().enumerate().all(|(offset, fetched)| fetched.offset == offset as i64 && whole(fetched))
            );
        }
    }
}
