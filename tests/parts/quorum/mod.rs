//! A quorum holds before the log says so (R10, R11, R12): nodes that die between two steps, that cannot collect, cannot keep
//! what they have, or come back with an older disk; queries that nobody sent.

mod town;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use self::town::{Death, Town, group, until};
use crate::shop::{LIMIT, NODES, Shop, committed, name};
use bytes::Bytes;
use sealcast::core::id::{DestinationTag, Epoch, NodeName, Suite, Time};
use sealcast::core::receipt::Query;
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::core::sign::SecretKey;
use sealcast::rpc::client::retryable;
use sealcast::rpc::proto;
use sealcast::seams::{Randomness, SeededRandomness};
use sealcast::transport::{Record, Topic, Transport};

#[tokio::test(flavor = "multi_thread")]
async fn r10_the_leader_dies_between_staged_and_proposed() {
    let mut town = Town::new().await;
    let leader = town.leader().await;
    let others = town.others(&leader);
    // It alone has the parcel, and one is no quorum.
    others.iter().for_each(|other| town.sees(other, false));
    let (header, digest) = town.send(b"staged on one").await;
    until("the leader to stage it", || (town.counts(&leader).undecided == 1).then_some(())).await;
    assert!(!town.is_in_log(&leader, &digest));
    let disk = town.kill(&leader, Death::PowerCut).await;
    others.iter().for_each(|other| town.sees(other, true));
    let position = committed(&town.shop.receipts(&header, 2).await);
    town.start(&leader, disk).await;
    town.settled(position, &header, 1).await;
    town.end().await;
}

/// Brings a parcel into the leader's log and no further; gives the leader, and what was sent, this time or before in vain.
async fn proposed_and_no_further(town: &mut Town) -> (String, Vec<PrivateHeader>) {
    let mut sent = Vec::new();
    // The others elect another leader when they miss this one for too long, which can be first on a slow machine.
    for _ in 0..10 {
        let leader = town.leader().await;
        town.cut(&leader, true);
        let (header, digest) = town.send(b"proposed").await;
        sent.push(header);
        let others = town.others(&leader);
        let proposed = until("it to be proposed", || {
            // It can propose what others reported a moment before it has staged it itself.
            let proposed = town.is_in_log(&leader, &digest) && town.counts(&leader).undecided == 1;
            let elsewhere = others.iter().any(|other| town.is_in_log(other, &digest));
            (proposed || elsewhere).then_some(proposed && !elsewhere)
        });
        if proposed.await {
            return (leader, sent);
        }
        town.cut(&leader, false);
        town.shop.receipts(sent.last().unwrap(), 3).await;
    }
    panic!("nobody leads for long enough to propose")
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_the_leader_dies_between_proposed_and_committed() {
    let mut town = Town::new().await;
    let (leader, sent) = proposed_and_no_further(&mut town).await;
    let disk = town.kill(&leader, Death::Killed).await;
    let header = sent.last().unwrap();
    let position = committed(&town.shop.receipts(header, 2).await);
    town.start(&leader, disk).await;
    town.settled(position, header, sent.len() as u64).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_two_leaders_propose_the_same_parcel_and_it_is_committed_once() {
    let mut town = Town::new().await;
    let (first, sent) = proposed_and_no_further(&mut town).await;
    let header = sent.last().unwrap();
    // It goes on leading nobody; the others elect another one, which proposes the same.
    let position = committed(&town.shop.receipts(header, 2).await);
    let others = town.others(&first);
    let leads = |node: &String| group(&town.shop.nodes[&name(node)]).leadership().borrow().own;
    until("another leader", || others.iter().find(|other| leads(other))).await;
    town.cut(&first, false);
    town.settled(position, header, sent.len() as u64).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_leader_that_cannot_collect_commits_what_others_reported_and_dies_before_it_answers() {
    let mut town = Town::new().await;
    let before = town.shop.header(b"before");
    town.shop.send(&before, b"before").await;
    town.shop.receipts(&before, 3).await;
    let mut sent = 1;
    // It leads all the while; on a slow machine another one can have been elected meanwhile, and then it is tried again.
    let (leader, header, position) = loop {
        let leader = town.leader().await;
        let term = group(&town.shop.nodes[&name(&leader)]).status().term;
        town.sees(&leader, false);
        let (header, _) = town.send(b"reported by others").await;
        sent += 1;
        let agreed = town.shop.agreed("orders", &header, 2).await;
        assert!(!agreed.signers.contains_key(&name::<NodeName>(&leader)), "nobody hears it");
        let status = group(&town.shop.nodes[&name(&leader)]).status();
        if (town.leader().await, status.term) == (leader.clone(), term) {
            break (leader, header, committed(&agreed.verdict));
        }
        assert!(sent < 10, "nobody leads for long enough");
        town.sees(&leader, true);
        town.shop.receipts(&header, 3).await;
    };
    // It fetches what it cannot collect, and serves it.
    assert_eq!(town.shop.get(&leader, &header).await.unwrap().1, b"reported by others");
    until("the leader to hold it", || (town.counts(&leader).missing == 0).then_some(())).await;
    // Committed and not answered.
    let disk = town.kill(&leader, Death::PowerCut).await;
    town.start(&leader, disk).await;
    town.settled(position, &header, sent).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_the_leader_dies_at_any_moment_again_and_again() {
    let mut town = Town::new().await;
    let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(10));
    let below = |end: u64| u64::from_be_bytes(drawn.array().unwrap()) % end;
    let mut sent = Vec::new();
    for round in 0..3 {
        let leader = town.leader().await;
        let pause = Duration::from_micros(below(40_000));
        let deaths = [Death::Killed, Death::PowerCut, Death::Some(round)];
        let death = deaths[below(3) as usize];
        for part in 0..3 {
            sent.push(town.send(format!("round {round}, {part}").as_bytes()).await.0);
        }
        tokio::time::sleep(pause).await;
        let disk = town.kill(&leader, death).await;
        town.start(&leader, disk).await;
    }
    let mut positions = BTreeSet::new();
    for header in &sent {
        positions.insert(committed(&town.shop.receipts(header, 3).await));
    }
    assert_eq!(positions.len(), sent.len());
    town.settled(committed(&town.shop.receipts(&sent[0], 3).await), &sent[0], sent.len() as u64).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_member_that_lacks_a_body_votes_serves_what_it_holds_and_fetches() {
    let mut town = Town::new().await;
    let first = town.send(b"held by all").await.0;
    town.shop.receipts(&first, 3).await;
    let leader = town.leader().await;
    let [lacking, dying] = town.others(&leader);
    // No large body can be kept there.
    town.machines[&lacking].disk.refuse_bodies(Some(ErrorKind::PermissionDenied));
    let large: Vec<u8> = (0..300_000u32).map(|at| (at % 241) as u8).collect();
    let missing = town.shop.header(&large);
    town.shop.send(&missing, &large).await;
    committed(&town.shop.receipts(&missing, 2).await);
    until("it to be missed", || (town.counts(&lacking).missing == 1).then_some(())).await;
    let context = town.shop.nodes[&name(&lacking)].served()[&name("orders")].context.clone();
    // A parcel of which it cannot keep all it has not staged: that is local trouble, and an alarm (R21).
    let failing = || context.alarms.standing().into_iter().any(|(alarm, _)| alarm == "staging-fails");
    until("it to say that it cannot keep it", || failing().then_some(())).await;
    let held = context.store.progress().borrow().held;
    // Nothing is committed any more without this one's vote.
    let disk = town.kill(&dying, Death::PowerCut).await;
    let after = town.send(b"with its vote").await.0;
    let agreed = town.shop.agreed("orders", &after, 2).await;
    assert!(committed(&agreed.verdict) > held);
    assert!(agreed.signers.contains_key(&name::<NodeName>(&lacking)), "it has this one's bytes and signs");
    assert_eq!(town.counts(&lacking).missing, 1);
    // Nor when somebody asks, who is answered about the rest.
    let marked =
        PrivateHeader { deadline: Time(town.shop.seams.clock.now().0 - 60_000), ..town.shop.header(b"marked") };
    let asked = [&missing, &marked].map(|header| (header.id, header.deadline, None)).to_vec();
    let query = Query { epoch: Epoch([1; 8]), time: town.shop.seams.clock.now(), asked };
    let tag = town.shop.directory.destinations[&name("orders")].tag;
    town.shop.publish_at(0, [query.sign(&town.shop.sender, tag).into()]).await;
    let answered = async {
        while !town.shop.said(&marked).await.contains_key(&lacking) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, answered).await.expect("it answers");
    assert_eq!(town.shop.said(&missing).await.get(&lacking), None, "what is not held is not signed");
    let request = proto::GetRequest { transaction: Bytes::copy_from_slice(&first.id.to_bytes()), ..Default::default() };
    let mut reader = town.shop.dialer.reader(&name(&lacking)).unwrap();
    let mut given = reader.get(request).await.unwrap().into_inner();
    let start = given.message().await.unwrap().unwrap().part.unwrap();
    assert!(matches!(start, proto::read_response::Part::Start(_)), "{start:?}");
    // And what is asked to be the present does not end before what is missing.
    let freshness = proto::Freshness {
        consistency: proto::Consistency::Linearizable.into(),
        timeout_ms: 1000,
        ..Default::default()
    };
    let present =
        proto::SubscribeRequest { destination: "orders".to_owned(), freshness: Some(freshness), ..Default::default() };
    // While another leader is elected, it is that which is missing.
    let refused = async {
        loop {
            let refused = reader.subscribe(present.clone()).await.unwrap_err();
            assert!(retryable(&refused), "{refused:?}");
            if refused.message().contains("held prefix ends") {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("it says what is missing");
    town.machines[&lacking].disk.refuse_bodies(None);
    assert_eq!(town.shop.get(&lacking, &missing).await.unwrap().1, large);
    town.start(&dying, disk).await;
    let position = committed(&town.shop.receipts(&missing, 3).await);
    town.settled(position, &missing, 3).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_bytes_that_are_damaged_at_one_member_are_fetched_from_another() {
    let mut town = Town::new().await;
    let leader = town.leader().await;
    let [lacking, _] = town.others(&leader);
    // It has it from nobody but the others, and cannot keep it yet.
    town.sees(&lacking, false);
    town.machines[&lacking].disk.refuse_bodies(Some(ErrorKind::PermissionDenied));
    let large: Vec<u8> = (0..300_000u32).map(|at| (at % 239) as u8).collect();
    let header = town.shop.header(&large);
    town.shop.send(&header, &large).await;
    committed(&town.shop.receipts(&header, 2).await);
    until("it to be missed", || (town.counts(&lacking).missing == 1).then_some(())).await;
    // Whom it asks first has other bytes than the log names.
    let disk = &town.machines[&leader].disk;
    let bodies: Vec<_> = disk.files().into_iter().filter(|path| path.parent().unwrap().ends_with("bodies")).collect();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    disk.flip(&bodies[0], 200_000);
    town.machines[&lacking].disk.refuse_bodies(None);
    assert_eq!(town.shop.get(&lacking, &header).await.unwrap().1, large);
    town.sees(&lacking, true);
    town.settled(committed(&town.shop.receipts(&header, 3).await), &header, 1).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_every_ticket_of_a_transaction_whose_body_is_missing_is_told_of_when_it_comes() {
    let mut town = Town::new().await;
    let leader = town.leader().await;
    let [lacking, _] = town.others(&leader);
    // It does not see the parcel, and can ask nobody for what is in it.
    town.sees_only(&lacking, 2);
    town.cut(&lacking, true);
    let header = town.shop.header(b"missing there");
    let again = PrivateHeader { deadline: header.deadline.after(Duration::from_secs(1)), ..header.clone() };
    let marker = town.shop.header(b"came behind");
    for (header, payload, partition) in
        [(&header, b"missing there".as_slice(), 0), (&again, b"missing there", 2), (&marker, b"came behind", 2)]
    {
        let stripes = town.shop.seal(&[(header.clone(), payload)], Suite::X25519);
        let records = stripes[0].segments.iter().map(|segment| segment.record.clone());
        town.shop.publish_at(partition, records).await;
        committed(&town.shop.receipts(header, 2).await);
    }
    // What came behind is held there, and so the same transaction under its other ticket was seen.
    committed(&town.shop.receipts(&marker, 3).await);
    assert_eq!(town.counts(&lacking).missing, 1);
    let said = async |header| town.shop.said(header).await.contains_key(&lacking);
    assert!(!said(&header).await && !said(&again).await, "what is not held is not signed");
    town.cut(&lacking, false);
    let position = committed(&town.shop.receipts(&header, 3).await);
    assert_eq!(committed(&town.shop.receipts(&again, 3).await), position);
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_fetched_body_that_does_not_sync_ends_the_node() {
    let mut town = Town::new().await;
    let leader = town.leader().await;
    let [lacking, _] = town.others(&leader);
    town.sees(&lacking, false);
    town.machines[&lacking].disk.fail_body_syncs();
    let large = vec![5; 300_000];
    let header = town.shop.header(&large);
    town.shop.send(&header, &large).await;
    committed(&town.shop.receipts(&header, 2).await);
    let failed = tokio::time::timeout(LIMIT, town.shop.nodes[&name(&lacking)].failed()).await.expect("it ends");
    assert!(failed.to_string().contains("the disk is broken"), "{failed}");
    let disk = town.kill(&lacking, Death::PowerCut).await;
    town.start(&lacking, disk).await;
    let position = committed(&town.shop.receipts(&header, 3).await);
    town.settled(position, &header, 1).await;
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_nothing_on_a_nodes_disk_shows_a_payload() {
    let mut town = Town::new().await;
    let secret = b"a payload that nobody may read here";
    let small = town.send(secret).await.0;
    committed(&town.shop.receipts(&small, 3).await);
    let large = secret.repeat(10_000);
    let header = town.shop.header(&large);
    town.shop.send(&header, &large).await;
    town.settled(committed(&town.shop.receipts(&header, 3).await), &header, 2).await;
    for (node, machine) in &town.machines {
        for path in machine.disk.files() {
            let bytes = machine.disk.bytes(&path);
            let shows = bytes.windows(secret.len()).any(|found| found == secret);
            assert!(!shows, "{node}: {}", path.display());
        }
    }
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_a_folder_of_yesterday_refuses_by_name_and_the_disk_of_today_goes_on() {
    let mut town = Town::new().await;
    let header = town.send(b"yesterday").await.0;
    town.shop.receipts(&header, 3).await;
    let yesterday = town.machines["c"].disk.crash();
    let header = town.send(b"today").await.0;
    let position = committed(&town.shop.receipts(&header, 3).await);
    let seen = until("what the others saw of it", || {
        let of = |other: &str| {
            let context = &town.shop.nodes[&name(other)].served()[&name("orders")].context;
            context.store.snapshot().unwrap().seen(&name("c")).unwrap()?.log
        };
        let log = ["a", "b"].into_iter().filter_map(of).max()?;
        (log.1 >= position.index).then_some(log)
    });
    seen.await;
    let today = town.kill("c", Death::Killed).await;
    town.start("c", yesterday).await;
    let text = until("the refusal", || match &*group(&town.shop.nodes[&name("c")]).stage().borrow() {
        sealcast::raft::Stage::Refused(text) => Some(text.clone()),
        _ => None,
    });
    assert!(text.await.contains("restored from an older copy"));
    let status = town.shop.status("c", "orders").await;
    let alarm =
        status.alarms.iter().find(|alarm| alarm.name == "store-restored").expect("an alarm that says what to do");
    assert!(alarm.text.contains("put the newest copy of its folder back"), "{}", alarm.text);
    assert!(!town.shop.nodes[&name("c")].readiness().borrow().ready());
    // The others go on; it is no part of their majority.
    let meanwhile = town.send(b"meanwhile").await.0;
    let agreed = town.shop.agreed("orders", &meanwhile, 2).await;
    assert!(!agreed.signers.contains_key(&name::<NodeName>("c")));
    town.kill("c", Death::Killed).await;
    town.start("c", today).await;
    town.settled(position, &header, 3).await;
    assert!(town.shop.status("c", "orders").await.alarms.iter().all(|alarm| alarm.name != "store-restored"));
    town.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_a_forged_foreign_or_replayed_query_has_no_answer_and_an_honest_one_has_one() {
    let mut shop = Shop::with_nodes().await;
    let asked = shop.header(b"asked for");
    shop.send(&asked, b"asked for").await;
    shop.receipts(&asked, 3).await;
    // Of what never came and is late, each answer tells the group's time: none is like another.
    let now = shop.seams.clock.now();
    let late = |text: &'static [u8]| PrivateHeader { deadline: Time(now.0 - 60_000), ..shop.header(text) };
    let (marked, last_marked) = (late(b"marked"), late(b"marked last"));
    // What nodes said of it. A publisher whose broker is slow says a thing more than twice, in the same words.
    let settled = async |shop: &Shop, header: &PrivateHeader| {
        let settling = async {
            while shop.words(header).await.len() != NODES.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, settling).await.expect("every node says it");
    };
    let tag = shop.directory.destinations[&name("orders")].tag;
    let query = |header: &PrivateHeader, epoch: u8, later: u64| Query {
        epoch: Epoch([epoch; 8]),
        time: now.after(Duration::from_millis(later)),
        asked: vec![(header.id, header.deadline, None)],
    };
    let honest = query(&marked, 1, 500).sign(&shop.sender, tag);
    let mut forged = query(&asked, 1, 600).sign(&shop.sender, tag);
    *forged.last_mut().unwrap() ^= 1;
    let stranger = query(&asked, 2, 0).sign(&SecretKey::from_seed(&[77; 32]), tag);
    let foreign = query(&asked, 2, 0).sign(&shop.sender, DestinationTag([9; 16]));
    // An older one of the same client, and the same once more.
    let older = query(&asked, 1, 400).sign(&shop.sender, tag);
    let long = [b"SCQY".as_slice(), &[1; 900_000]].concat();
    let partitions = shop.transport.partitions(&Topic::segments(&name("test"), &name("orders")));
    let transport = shop.transport.clone();
    let put = async |value: Vec<u8>, to: usize| {
        let record = Record { key: Bytes::new(), value: value.into() };
        transport.append(partitions[to].id.clone(), record).unwrap().await.unwrap();
    };
    let before = shop.words(&asked).await;
    for junk in [long, forged, stranger, foreign] {
        put(junk, 0).await;
    }
    put(honest.clone(), 0).await;
    put(honest.clone(), 1).await;
    settled(&shop, &marked).await;
    // Time passes for the group.
    let header = shop.header(b"meanwhile");
    shop.send(&header, b"meanwhile").await;
    shop.receipts(&header, 3).await;
    for replayed in [older, honest] {
        put(replayed, 0).await;
    }
    // What comes behind all of them is answered, and nothing before it was.
    put(query(&last_marked, 3, 0).sign(&shop.sender, tag), 0).await;
    settled(&shop, &last_marked).await;
    assert_eq!(shop.words(&marked).await.len(), NODES.len(), "each answered once");
    assert_eq!(shop.words(&asked).await, before, "nobody asked for it");
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_more_bodies_than_are_kept_in_mind_are_missing_and_all_of_them_are_fetched() {
    let mut town = Town::new().await;
    town.sees("c", false);
    let payloads: Vec<Vec<u8>> = (0..700u32).map(|number| number.to_be_bytes().to_vec()).collect();
    let headers: Vec<_> = payloads.iter().map(|payload| town.shop.header(payload)).collect();
    let all: Vec<(PrivateHeader, &[u8])> = headers.iter().cloned().zip(payloads.iter().map(Vec::as_slice)).collect();
    let stripes = town.shop.seal(&all, Suite::X25519);
    town.shop.publish(&stripes).await;
    let last = headers.last().unwrap();
    let position = committed(&town.shop.receipts(last, 2).await);
    // It cannot say so, but it has all of them from the others.
    town.shop.agree().await;
    assert_eq!(town.counts("c").committed, 700);
    town.sees("c", true);
    town.settled(position, last, 700).await;
    for number in [0, 350, 699] {
        assert_eq!(town.shop.get("c", &headers[number]).await.unwrap().1, payloads[number]);
    }
    town.end().await;
}
