//! What nodes say does not wait for a broker that takes nothing.

use std::sync::Arc;

use crate::shop::{NODES, Shop};
use sealcast::transport::adversary::{AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Domain};

#[tokio::test(flavor = "multi_thread")]
async fn r15_receipts_go_elsewhere_while_a_broker_is_silent() {
    let mut shop = Shop::open().await;
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
    let silent = Domain("embedded-0".into());
    adversary.set_mood(&silent, Mood::Held);
    for number in 0..24u8 {
        let header = shop.header(&[number]);
        shop.send(&header, &[number]).await;
        shop.agreed("orders", &header, 3).await;
    }
    adversary.set_mood(&silent, Mood::Well);
    shop.shut().await;
}
