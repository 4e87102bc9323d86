//! Applications that consume: chosen transactions in order, from a cursor that they keep, over nodes that come and go, and
//! as fresh as they ask for.

use std::time::Duration;

use crate::shop::{LIMIT, NODES, Shop, committed, name};
use futures_util::{StreamExt, pin_mut};
use sealcast::client::reader::{Cursor, Event, Feed, Freshness, From, ReadError, Reader, Subscription};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{Position, Suite};
use sealcast::core::seal::transaction::{ExpectedVersion, PrivateHeader};

const MOST: usize = 1 << 20;

fn reader(shop: &Shop) -> Reader {
    let config = ClientConfig::load(&Sources::file(&shop.written.readers[&name("app")])).unwrap();
    Reader::from_config(&config, &shop.seams).unwrap()
}

/// Commits transactions in one parcel, or several, with these headers each; gives their payloads.
async fn commit(shop: &mut Shop, transactions: Vec<(PrivateHeader, String)>) -> Vec<Position> {
    for part in transactions.chunks(1000) {
        let parcel: Vec<_> = part.iter().map(|(header, payload)| (header.clone(), payload.as_bytes())).collect();
        let stripes = shop.seal(&parcel, Suite::X25519);
        shop.publish(&stripes).await;
        // Parcels have no order among them: the next one waits, so that tests can name one.
        if let Some((header, _)) = part.last() {
            committed(&shop.receipts(header, shop.nodes.len()).await);
        }
    }
    let mut positions = Vec::new();
    for (header, _) in [transactions.first().unwrap(), transactions.last().unwrap()] {
        positions.push(committed(&shop.receipts(header, shop.nodes.len()).await));
    }
    positions
}

fn plain(shop: &Shop, payload: &str) -> (PrivateHeader, String) {
    (shop.header(payload.as_bytes()), payload.to_owned())
}

async fn to_the_end(reader: &Reader, subscription: Subscription) -> (Vec<String>, Cursor) {
    let mut feed = reader.subscribe(&name("orders"), subscription.until_end()).await.unwrap();
    let mut got = Vec::new();
    while let Some((_, payload)) = feed.transaction(MOST).await.unwrap() {
        got.push(String::from_utf8(payload.to_vec()).unwrap());
    }
    (got, feed.cursor().unwrap())
}

async fn next(feed: &mut Feed) -> (Position, String) {
    let next = tokio::time::timeout(LIMIT, feed.transaction(MOST)).await.expect("it comes");
    let (committed, payload) = next.unwrap().expect("no end");
    (committed.position, String::from_utf8(payload.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_gives_the_keys_and_headers_that_were_asked_for_in_order() {
    let mut shop = Shop::with_nodes().await;
    // More than is looked at together, of one key too.
    let all: Vec<_> = (0..900)
        .map(|number| {
            let (mut header, payload) = plain(&shop, &format!("number {number}"));
            header.ordering_key = match number {
                n if n % 3 == 0 => Some(b"common".to_vec()),
                n if n % 100 == 1 => Some(b"rare".to_vec()),
                _ => None,
            };
            header.headers = vec![("kind".to_owned(), if number % 90 == 7 { b"seldom" } else { b"usual!" }.to_vec())];
            if number == 187 {
                header.headers.push(("mark".to_owned(), b"1".to_vec()));
            }
            (header, payload)
        })
        .collect();
    let last = commit(&mut shop, all).await[1];
    let numbers = |wanted: &dyn Fn(usize) -> bool| -> Vec<String> {
        (0..900).filter(|number| wanted(*number)).map(|number| format!("number {number}")).collect()
    };
    let reader = reader(&shop);
    let start = || Subscription::new(From::Start).fresh(Freshness::at_least(last));
    let (got, end) = to_the_end(&reader, start()).await;
    assert_eq!(got, numbers(&|_| true));
    for (subscription, wanted) in [
        (start().key("common"), &(|n: usize| n.is_multiple_of(3)) as &dyn Fn(usize) -> bool),
        (start().key("rare"), &|n| n % 100 == 1 && n % 3 != 0),
        (start().key("rare").key("common").key("rare"), &|n| n % 3 == 0 || n % 100 == 1),
        (start().header("kind", "seldom"), &|n| n % 90 == 7),
        (start().header("kind", "seldom").header("mark", "1"), &|n| n == 187),
        (start().header("mark", "2"), &|_| false),
        (start().key("common").header("kind", "usual!"), &|n| n % 3 == 0 && n % 90 != 7),
        (start().key("nobody's"), &|_| false),
    ] {
        let (got, cursor) = to_the_end(&reader, subscription.clone()).await;
        assert_eq!(got, numbers(wanted), "{subscription:?}");
        // Whatever matched: it goes on behind all that was looked at.
        assert!(cursor.position() >= last, "{subscription:?}");
        assert_eq!(to_the_end(&reader, Subscription::new(From::Cursor(cursor))).await.0, [""; 0]);
    }
    assert!(end.position() >= last);
    // Payloads can be left out; what is too large is named, and what is behind it comes.
    let bare = Subscription::new(From::Last(2)).until_end().without_payload();
    let mut feed = reader.subscribe(&name("orders"), bare).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = feed.next().await.unwrap() {
        match event {
            Event::Begin(committed) => events.push(committed.payload_bytes.to_string()),
            Event::Data(_) => panic!("no payload was asked for"),
            Event::End => events.push("end".to_owned()),
            Event::Progress(_) => {}
        }
    }
    assert_eq!(events, ["10", "end", "10", "end"]);
    let mut feed = reader.subscribe(&name("orders"), Subscription::new(From::Start).until_end()).await.unwrap();
    let error = feed.transaction(7).await.unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { bytes: 8, most: 7, .. }) && !error.retryable(), "{error}");
    assert_eq!(feed.transaction(8).await.unwrap().unwrap().1.as_ref(), b"number 1");

    let too_many = (0..65).fold(start(), |all, number| all.key(format!("key {number}")));
    let error = reader.subscribe(&name("orders"), too_many).await.unwrap_err();
    assert!(matches!(&error, ReadError::Refused { said, .. } if said.contains("64 may come")), "{error}");
    let elsewhere: Cursor = format!("{last}@{}", "0".repeat(32)).parse().unwrap();
    let error = reader.subscribe(&name("orders"), Subscription::new(From::Cursor(elsewhere))).await.unwrap_err();
    assert!(matches!(error, ReadError::OtherCursor { .. }), "{error}");
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r23_a_consumer_that_was_away_goes_on_where_it_was_though_every_node_was_restarted() {
    let mut shop = Shop::with_nodes().await;
    let first: Vec<_> = (0..3).map(|number| plain(&shop, &format!("before {number}"))).collect();
    commit(&mut shop, first).await;
    let mut feed = reader(&shop).subscribe(&name("orders"), Subscription::default()).await.unwrap();
    assert_eq!(next(&mut feed).await.1, "before 0");
    assert_eq!(next(&mut feed).await.1, "before 1");
    // What an application keeps is text.
    let kept = feed.cursor().unwrap().to_string();
    drop(feed);
    let mut expected = vec!["before 2".to_owned()];
    for node in NODES {
        shop.stop(node).await;
        let some: Vec<_> = (0..1500).map(|number| plain(&shop, &format!("without {node}: {number}"))).collect();
        expected.extend(some.iter().map(|(_, payload)| payload.clone()));
        commit(&mut shop, some).await;
        shop.start(node).await;
        shop.ready().await;
    }
    shop.agree().await;
    for node in NODES {
        let reader = reader(&shop).at(name(node)).unwrap();
        let from = From::Cursor(kept.parse().unwrap());
        let feed = reader.subscribe(&name("orders"), Subscription::new(from).until_end()).await.unwrap();
        let stream = feed.into_stream(MOST);
        pin_mut!(stream);
        let mut got = Vec::new();
        while let Some(next) = stream.next().await {
            got.push(String::from_utf8(next.unwrap().1.to_vec()).unwrap());
        }
        assert_eq!(got, expected, "{node}");
    }
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r23_a_feed_goes_on_at_another_node_when_its_own_ends() {
    let mut shop = Shop::with_nodes().await;
    let one = plain(&shop, "one");
    commit(&mut shop, vec![one]).await;
    let reader = reader(&shop);
    let mut feed = reader.subscribe(&name("orders"), Subscription::default()).await.unwrap();
    let mut at = next(&mut feed).await.0;
    let mut nodes = vec![feed.node().clone()];
    for (number, stopped) in [1, 2].into_iter().enumerate() {
        let own = feed.node().clone();
        // It waits for more while its node ends.
        let waiting = tokio::spawn(async move {
            let got = next(&mut feed).await;
            (feed, got)
        });
        shop.stop(own.as_str()).await;
        let payload = format!("{stopped} stopped");
        let sent = plain(&shop, &payload);
        commit(&mut shop, vec![sent]).await;
        let (back, (position, got)) = waiting.await.unwrap();
        feed = back;
        assert_eq!(got, payload);
        assert!(position > at, "nothing twice");
        at = position;
        nodes.push(feed.node().clone());
        assert_ne!(nodes[number], nodes[number + 1]);
        shop.start(own.as_str()).await;
        shop.ready().await;
    }
    // From now on: nothing of before.
    let mut feed = reader.subscribe(&name("orders"), Subscription::new(From::End)).await.unwrap();
    assert!(matches!(feed.next().await.unwrap(), Some(Event::Progress(end)) if end >= at));
    assert!(feed.cursor().is_some_and(|cursor| cursor.position() >= at), "it can be kept before anything came");
    let sent = plain(&shop, "now");
    commit(&mut shop, vec![sent]).await;
    assert_eq!(next(&mut feed).await.1, "now");
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r23_a_read_is_as_fresh_as_it_asks_for_or_says_that_it_cannot_be() {
    let mut shop = Shop::with_nodes().await;
    let header = shop.keyed(b"mine", None, ExpectedVersion::Absent);
    let position = commit(&mut shop, vec![(header.clone(), "mine".to_owned())]).await[0];
    let orders = name("orders");
    let whole = async |feed: Result<Feed, ReadError>| feed?.transaction(MOST).await.map(|one| one.unwrap().1.to_vec());
    for node in NODES {
        let reader = reader(&shop).at(name(node)).unwrap();
        for freshness in [Freshness::at_least(position), Freshness::linearizable()] {
            assert_eq!(whole(reader.get(header.id, Some(&orders), freshness).await).await.unwrap(), b"mine");
            assert_eq!(
                whole(reader.get_by_key(&orders, b"customer-42", false, freshness).await).await.unwrap(),
                b"mine"
            );
            let until_now = Subscription::new(From::Start).until_end().fresh(freshness);
            assert_eq!(whole(reader.subscribe(&orders, until_now).await).await.unwrap(), b"mine");
        }
    }
    // What nobody holds yet is waited for, and no longer than asked.
    let reader = reader(&shop);
    let later = Position { index: position.index + 1_000_000, number: 0 };
    let short = Duration::from_millis(100);
    shop.stop("a").await;
    shop.stop("b").await;
    for freshness in [Freshness::at_least(later).within(short), Freshness::linearizable().within(short)] {
        let errors = [
            whole(reader.get(header.id, Some(&orders), freshness).await).await.unwrap_err(),
            whole(reader.get_by_key(&orders, b"customer-42", true, freshness).await).await.unwrap_err(),
            whole(reader.subscribe(&orders, Subscription::default().fresh(freshness)).await).await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, ReadError::Unavailable { .. }) && error.retryable(), "{error}");
        }
    }
    // With time enough it waits for a leader and a majority that confirm what is committed.
    let confirmed = Freshness::linearizable().within(Duration::from_secs(50));
    let waited = async { whole(reader.get(header.id, Some(&orders), confirmed).await).await };
    let (got, ()) = tokio::join!(waited, shop.start("a"));
    assert_eq!(got.unwrap(), b"mine");
    shop.stop("a").await;
    // One node alone still gives what it holds.
    assert_eq!(whole(reader.get(header.id, None, Freshness::default()).await).await.unwrap(), b"mine");
    let (got, _) = to_the_end(&reader, Subscription::default()).await;
    assert_eq!(got, ["mine"]);
    shop.shut().await;
}
