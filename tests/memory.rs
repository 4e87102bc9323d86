//! What passes is never held whole: one transaction of 1 GiB goes through real brokers and three real nodes, and no process of
//! Sealcast ever holds more than 256 MiB of memory. So with thousands of small ones in flight.
//!
//! A process's peak is `VmHWM` of Linux's /proc. Needs about 7 GiB of free disk for as long as it runs. Figures:
//! `cargo test --test memory -- --nocapture`. With `SEALCAST_MEMORY_ROWS=FILE` they are appended to that file, too, as rows of
//! `scripts/compare`, one JSON object a line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::kafka::shared;
use common::world::{World, lines};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sealcast::client::{Client, Stage, Transaction, Waited};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{Epoch, ParcelId, Suite};
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{Core, CoreDestination, Profile};
use sealcast::core::split::stripe::Splitter;
use sealcast::seams::Seams;

/// The bound: 256 MiB of resident memory, in KiB as the kernel counts.
const MOST_KIB: u64 = 256 * 1024;

const GIB: u64 = 1 << 30;

/// The most memory that a process ever had resident, in KiB; `None` once it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = match std::fs::read_to_string(format!("/proc/{process}/status")) {
        Ok(status) => status,
        Err(error) => {
            assert!(
                Path::new("/proc/self/status").exists(),
                "the peak of a process's memory is read from Linux's /proc, which this system has not: {error}"
            );
            return None;
        }
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse().expect("VmHWM is a number of kB"))
}

/// Waits for a command's end: its output and its peak. A peak of its last ten milliseconds can go unseen.
fn watched(mut child: Child) -> (Vec<u8>, u64) {
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut most = 0;
    let status = loop {
        most = peak(child.id()).unwrap_or(most);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, said) = (out.join().unwrap().unwrap(), said.join().unwrap().unwrap());
    assert!(status.success(), "{:?}: {said}", status.code());
    (out, most)
}

/// Writes a file of bytes that look random; gives their BLAKE3.
fn make(path: &Path, bytes: u64) -> blake3::Hash {
    let mut stream = blake3::Hasher::new().update(b"a payload").finalize_xof();
    let (mut file, mut hasher) = (std::fs::File::create(path).unwrap(), blake3::Hasher::new());
    let mut left = bytes;
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(piece.len()));
        stream.fill(&mut piece);
        hasher.update(&piece);
        file.write_all(&piece).unwrap();
        left -= piece.len() as u64;
    }
    hasher.finalize()
}

fn digest(path: &Path) -> (u64, blake3::Hash) {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).unwrap()).unwrap();
    (hasher.count(), hasher.finalize())
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

/// Prints the figures, then holds them to the bound.
fn hold(what: &str, peaks: &BTreeMap<String, u64>) {
    let mut rows = String::new();
    for (process, kib) in peaks {
        println!("peak of resident memory, {what}: {process:<6} {:>4} MiB", kib.div_ceil(1024));
        let mib = *kib as f64 / 1024.0;
        let row = serde_json::json!({
            "name": format!("peak memory of {process}"), "arm": "sealcast", "condition": what,
            "value": mib, "low": mib, "high": mib, "unit": "MiB",
            "target": format!("<= {}", MOST_KIB / 1024), "met": *kib <= MOST_KIB,
        });
        rows += &format!("{row}\n");
    }
    if let Some(path) = std::env::var_os("SEALCAST_MEMORY_ROWS") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(rows.as_bytes()).unwrap();
    }
    let over: Vec<_> = peaks.iter().filter(|(_, kib)| **kib > MOST_KIB).collect();
    assert!(over.is_empty(), "{what}: over {MOST_KIB} KiB: {over:?}");
}

/// One world at a time: a machine with two cores should not run two.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn peaks_of_nodes(world: &World, peaks: &mut BTreeMap<String, u64>) {
    for node in ["a", "b", "c"] {
        peaks.insert(format!("node {node}"), peak(world.process(node)).expect("the node runs"));
    }
}

#[test]
fn a_gibibyte_passes_in_a_quarter_of_one() {
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start_all();
    let path = world.path().to_path_buf();
    let digest_sent = make(&path.join("large"), GIB);
    let began = Instant::now();
    let mut command = world.command(&["send", "orders", "large", "--config", "env/senders/web/client.toml"]);
    command.args(["--wait", "complete", "--timeout", "10m", "--format", "json"]);
    let (said, of_send) = watched(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    println!("complete after {:.1} s", began.elapsed().as_secs_f64());
    let mut peaks = BTreeMap::from([("send".to_owned(), of_send)]);
    std::fs::remove_file(path.join("large")).unwrap();
    let sent = lines(&said).pop().unwrap();
    assert_eq!(sent["bytes"].as_u64(), Some(GIB));
    let (id, position) = (sent["transaction"].as_str().unwrap(), sent["position"].as_str().unwrap());

    let began = Instant::now();
    let mut command = world.command(&["get", id, "--config", "env/readers/app/client.toml", "--node", "b"]);
    command.args(["--at-least", position, "--timeout", "60s", "-o", "got"]);
    let (_, of_get) = watched(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    println!("read after {:.1} s", began.elapsed().as_secs_f64());
    peaks.insert("get".to_owned(), of_get);
    assert!(digest(&path.join("got")) == (GIB, digest_sent), "what was read differs from what was sent");

    // What is decided leaves the sender; each node keeps the transaction once, as it came.
    let kept = size(&path.join("env/senders/web/outbox/parcels"));
    assert_eq!(kept, 0, "the outbox still holds {kept} bytes of a transaction that has its fate");
    for node in ["a", "b", "c"] {
        let kept = size(&path.join(format!("env/nodes/{node}/data/orders")));
        assert!((GIB..GIB + GIB / 64).contains(&kept), "node {node} keeps {kept} bytes");
    }
    peaks_of_nodes(&world, &mut peaks);
    hold("one transaction of 1 GiB", &peaks);
}

/// What the flood is made of: so many parcels of as many records as may be; and of as long ones as a client makes, at most 12 of
/// these, over 100 MiB. Gives each one's shape, stripes and number.
fn halves(parcels: u32) -> [(Profile, u32, u32); 2] {
    [(Profile::new(8, 4, 4096).unwrap(), 64, parcels), (Profile::fitting(3, 16 << 20), 16, parcels.min(12))]
}

/// A sender of the directory gone wrong, and a stranger: half of each stripe of so many parcels as [`halves`] says, and the
/// beginning of so many more, put on the topic as fast as the brokers take them. Gives how many records that are.
fn flood(brokers: &str, topic: &str, config: &Path, parcels: u32, begun: u32) -> usize {
    let config = ClientConfig::load(&Sources::file(config)).unwrap();
    let directory = config.environment.load_directory().unwrap();
    let (_, known) = config.sender(&directory).unwrap().unwrap();
    let orders = directory.destinations.values().next().unwrap();
    let now = Seams::real().clock.now();
    let core = |key: &SecretKey, number: u32, profile| Core {
        suite: Suite::XWing,
        profile,
        environment: directory.environment,
        sender: key.public().bytes(),
        epoch: Epoch([9; 8]),
        parcel: ParcelId::from_parts(now, [number.to_be_bytes().as_slice(), &[0; 6]].concat().try_into().unwrap()),
        expiry: now.after(Duration::from_secs(3600)),
        destinations: vec![CoreDestination {
            tag: orders.tag,
            key: orders.current_key(Suite::XWing).unwrap().id,
            sequence: number.into(),
        }],
    };
    let mut producer = rdkafka::ClientConfig::new();
    producer.set("bootstrap.servers", brokers).set("linger.ms", "20").set("queue.buffering.max.kbytes", "16384");
    let producer: ThreadedProducer<DefaultProducerContext> = producer.create().unwrap();
    let mut count = 0;
    let mut put = |record: &[u8]| {
        let number = i32::try_from(count % 3).unwrap();
        let mut next = BaseRecord::<[u8], [u8]>::to(topic).partition(number).payload(record);
        while let Err((_, back)) = producer.send(next) {
            std::thread::sleep(Duration::from_millis(2));
            next = back;
        }
        count += 1;
    };
    let mut next = 0;
    for (profile, stripes, parcels) in halves(parcels) {
        let bytes = vec![7; profile.stripe_bytes()];
        let mut open: Vec<_> = (next..next + parcels)
            .map(|number| Splitter::new(core(known.signing(), number, profile), known.signing().clone()).unwrap())
            .collect();
        next += parcels;
        for _ in 0..stripes {
            for parcel in &mut open {
                for stripe in parcel.push(&bytes).unwrap() {
                    stripe.segments[..profile.k() / 2].iter().for_each(|segment| put(&segment.record));
                }
            }
        }
    }
    let stranger = SecretKey::from_seed(&[77; 32]);
    for number in next..next + begun {
        let key = if number % 2 == 0 { known.signing() } else { &stranger };
        let mut parcel = Splitter::new(core(key, number, Profile::new(3, 2, 64).unwrap()), key.clone()).unwrap();
        parcel.push(&[8; 100]).unwrap();
        put(&parcel.finish().unwrap().segments[0].record);
    }
    producer.flush(Duration::from_secs(120)).unwrap();
    count
}

/// Submits so many transactions of 16 KiB at once, behind a flood of half parcels of the same sender, and holds all peaks.
fn in_flight_behind_a_flood(many: u32, parcels: u32, begun: u32) {
    let brokers = shared();
    let mut world = World::new(&brokers);
    let config = world.path().join("env/senders/web/client.toml");
    let topic = format!("sealcast.{}.orders.segments", world.environment());
    // All of it is there, before anything else, when the nodes start.
    let flooded = flood(&brokers, &topic, &config, parcels, begun);
    // A splitter keeps its last stripe until it knows what follows.
    let records =
        |(profile, stripes, parcels): (Profile, u32, u32)| parcels as usize * (stripes as usize - 1) * profile.k() / 2;
    assert_eq!(flooded, halves(parcels).map(records).iter().sum::<usize>() + begun as usize);
    // The client is this process: what others of its tests and the flood took is not the client's.
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux resets the peak of a process by it");
    world.start_all();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let began = Instant::now();
    runtime.block_on(async {
        let client = Client::connect(&config).await.unwrap();
        let send = |number: u32| {
            let client = client.clone();
            async move {
                let mut payload = vec![0; 16 * 1024];
                blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut payload);
                let handle = client.submit("orders", Transaction::new(payload)).await.unwrap();
                handle.wait(Stage::Committed, Duration::from_secs(300)).await.unwrap()
            }
        };
        for outcome in futures_util::future::join_all((0..many).map(send)).await {
            assert!(matches!(outcome, Waited::Reached), "{outcome:?}\n{}", world.logs());
        }
        client.close().await;
    });
    println!("committed after {:.1} s", began.elapsed().as_secs_f64());
    world.settle(u64::from(many));
    // With the payloads that it submits.
    let own = peak(std::process::id()).expect("this process runs");
    let mut peaks = BTreeMap::from([("client".to_owned(), own)]);
    peaks_of_nodes(&world, &mut peaks);
    let behind = if flooded == 0 { String::new() } else { format!(" behind {flooded} records of half parcels") };
    hold(&format!("{many} transactions of 16 KiB in flight{behind}"), &peaks);
}

#[test]
fn thousands_in_flight_do_not_pile_up() {
    let _turn = turn();
    in_flight_behind_a_flood(4096, 0, 0);
}

#[test]
fn r16_half_parcels_of_a_sender_and_strangers_cost_a_node_no_more_memory_than_the_bound() {
    let _turn = turn();
    in_flight_behind_a_flood(256, 12, 1_000);
}

#[test]
#[ignore = "the same at its real size, a minute or two: cargo test --test memory -- --ignored --nocapture"]
fn r16_scores_of_half_parcels_and_ten_thousand_begun_ones_stay_within_the_bound() {
    let _turn = turn();
    in_flight_behind_a_flood(4096, 64, 10_000);
}
