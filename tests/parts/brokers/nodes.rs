//! What nodes say does not wait for a broker that takes nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::shop::{LIMIT, NODES, Shop};
use sealcast::core::id::{Suite, Time};
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::seams::{Clock, SystemClock};
use sealcast::transport::adversary::{AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Domain};

/// The machine's clocks, of which the one for waiting can go slower: patience lasts longer than any machine is slow.
pub struct Patient {
    clock: SystemClock,
    /// Since when it goes as it does, what it said then, and how many times slower it goes.
    since: Mutex<(Duration, Duration, u32)>,
}

impl Patient {
    pub fn new() -> Self {
        Self { clock: SystemClock::new(), since: Mutex::new((Duration::ZERO, Duration::ZERO, 1)) }
    }

    pub fn go(&self, slower: u32) {
        let said = self.monotonic();
        *self.since.lock().unwrap() = (self.clock.monotonic(), said, slower);
    }
}

impl Clock for Patient {
    fn now(&self) -> Time {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        let (since, said, slower) = *self.since.lock().unwrap();
        said + (self.clock.monotonic() - since) / slower
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.clock.sleep(duration)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_receipts_go_elsewhere_while_a_broker_is_silent() {
    let mut shop = Shop::open().await;
    let clock = Arc::new(Patient::new());
    shop.seams.clock = clock.clone();
    let hurt = shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &shop.seams);
    let hurt = Arc::new(hurt);
    for node in NODES {
        shop.start_over(node, hurt.clone()).await;
    }
    shop.ready().await;
    let AnyTransport::Adversary(adversary) = hurt.as_ref() else { panic!("it is behind an adversary") };
    let first = shop.header(b"all well");
    shop.send(&first, b"all well").await;
    shop.agreed("orders", &first, 3).await;
    // Its connection stands, and no answer ever comes: more receipts than may be on their way at once.
    clock.go(4);
    adversary.set_mood(&Domain("embedded-0".into()), Mood::Held);
    let mut all: Vec<PrivateHeader> = Vec::new();
    for number in 0..10u8 {
        let header = shop.header(&[number]);
        shop.send(&header, &[number]).await;
        shop.agreed("orders", &header, 3).await;
        all.push(header);
    }
    // Each statement of each node lies in two domains all the same.
    let everywhere = async {
        for header in &all {
            let twice = async || shop.said(header).await.values().filter(|copies| **copies >= 2).count() == NODES.len();
            while !twice().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(LIMIT, everywhere).await.expect("nobody waits for the silent one");
    // With one left, what it has is said: the second domain is waited for, but not for ever.
    clock.go(1);
    adversary.set_mood(&Domain("embedded-1".into()), Mood::Held);
    for number in 0..10u8 {
        let header = shop.header(&[number]);
        let stripes = shop.seal(&[(header.clone(), &[number])], Suite::X25519);
        shop.publish_at(2, stripes[0].segments.iter().map(|segment| segment.record.clone())).await;
        shop.agreed("orders", &header, 3).await;
    }
    for domain in ["embedded-0", "embedded-1"] {
        adversary.set_mood(&Domain(domain.into()), Mood::Well);
    }
    shop.shut().await;
}
