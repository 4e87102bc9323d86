//! Receipts: what is signed is what is counted, and nothing else counts. Their bytes are pinned by tests/golden/receipts.hex.

use std::sync::Arc;
use std::time::Duration;

use crate::segments::{NOW, directory, draft, orders, secret, sign, web};
use proptest::prelude::*;
use sealcast::core::directory::DestinationKey;
use sealcast::core::id::{
    DestinationTag, Digest, Epoch, First, NodeName, ParcelId, PayloadTag, Position, RefusalReason, Rejection,
    SenderName, Suite, Ticket, Time, TransactionId,
};
use sealcast::core::limits;
use sealcast::core::receipt::{
    Added, Answered, Counter, Decided, Directories, Missing, Notice, NoticeError, NoticeRecord, Present, Query,
    QueryError, Refusal, Refusals, StageTimes, Statement, Verdict, Verified, is_query, notice_key, sign_receipts,
};
use sealcast::core::sign::SecretKey;

const DEADLINE: Time = Time(NOW.0 + 3_600_000);

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// The signing key of node a, b or c.
fn key(name: &str) -> SecretKey {
    secret(10 + 2 * (name.as_bytes()[0] - b'a'))
}

fn transaction(number: u8) -> TransactionId {
    TransactionId::from_parts(NOW, [number; 10])
}

fn decided(index: u64) -> Decided {
    Decided { position: Position { index, number: 2 }, payload_tag: PayloadTag([5; 32]), digest: Digest([6; 32]) }
}

fn statement(number: u8, verdict: Verdict) -> Statement {
    Statement {
        sender: "web".parse().unwrap(),
        transaction: transaction(number),
        deadline: DEADLINE,
        directory: 1,
        verdict,
        times: StageTimes { delivered: Some(12), staged: Some(3), committed: Some(0), held: None },
    }
}

fn directories() -> Directories {
    let mut later = draft();
    later.version = 2;
    // "c" is voter no more, and a quorum of two is two.
    later.destinations.get_mut(&"orders".parse().unwrap()).unwrap().nodes = vec![node("a"), node("b")];
    [(1, Arc::new(directory())), (2, Arc::new(sign(&later)))].into()
}

/// What a node says of one transaction, signed and verified.
fn said(name: &str, statement: Statement) -> Verified<Statement> {
    said_for(orders(), name, statement)
}

fn said_for(destination: DestinationTag, name: &str, statement: Statement) -> Verified<Statement> {
    let mut directories = directories();
    if destination != orders() {
        let mut elsewhere = draft();
        let mut other = elsewhere.destinations[&"orders".parse().unwrap()].clone();
        (other.name, other.tag) = ("elsewhere".parse().unwrap(), destination);
        other.keys = vec![DestinationKey::current(Suite::X25519, vec![11; 32].into()).unwrap()];
        elsewhere.add_destination(other);
        directories.insert(1, Arc::new(sign(&elsewhere)));
    }
    let records = sign_receipts(&key(name), &node(name), destination, 1, &[statement]);
    receipts(&records[0]).verify(&directories).unwrap().remove(0)
}

fn receipts(record: &NoticeRecord) -> sealcast::core::receipt::Receipts {
    match Notice::decode(&record.value).unwrap() {
        Notice::Receipts(receipts) => receipts,
        other => panic!("{other:?}"),
    }
}

fn counter() -> Counter {
    let ticket = Ticket { destination: "orders".parse().unwrap(), transaction: transaction(1), deadline: DEADLINE };
    Counter::new(ticket, orders(), "web".parse().unwrap(), Some(PayloadTag([5; 32])))
}

fn committed(index: u64) -> Verdict {
    Verdict::Committed(decided(index))
}

fn all_verdicts() -> Vec<Verdict> {
    let first = First { transaction: transaction(99), position: Position { index: 3, number: 4 } };
    vec![
        committed(7),
        Verdict::Rejected(decided(7), Rejection::NotPermitted),
        Verdict::Rejected(decided(7), Rejection::IdReuse),
        Verdict::Rejected(decided(7), Rejection::Predecessor),
        Verdict::Rejected(decided(7), Rejection::Conflict),
        Verdict::Rejected(decided(7), Rejection::DeadlineTooFar),
        Verdict::Duplicate(decided(7), first),
        Verdict::Expired { group_time: Time(DEADLINE.0 + 1) },
        Verdict::Forgotten { group_time: Time(DEADLINE.0 + 1) },
    ]
}

#[test]
fn every_statement_reads_as_it_was_written() {
    for verdict in all_verdicts() {
        let statement = statement(1, verdict);
        assert_eq!(Statement::decode(&statement.encode()), Ok(statement));
    }
    let not_past = statement(1, Verdict::Expired { group_time: DEADLINE });
    assert!(Statement::decode(&not_past.encode()).is_err(), "expired before the deadline has passed is no statement");
}

#[test]
fn a_batch_has_one_signature_and_a_record_for_each_sender() {
    let mut statements: Vec<Statement> = (0..11).map(|number| statement(number, committed(number.into()))).collect();
    for statement in statements.iter_mut().step_by(3) {
        statement.sender = "shop".parse().unwrap();
    }
    let records = sign_receipts(&key("a"), &node("a"), orders(), 1, &statements);
    let senders: Vec<SenderName> = ["shop", "web"].map(|name| name.parse().unwrap()).into();
    assert_eq!(
        records.iter().map(|record| record.key).collect::<Vec<_>>(),
        senders.iter().map(notice_key).collect::<Vec<_>>()
    );
    let mut found = Vec::new();
    for (record, sender) in records.iter().zip(&senders) {
        let receipts = receipts(record);
        assert_eq!((receipts.sender(), receipts.destination()), (sender, orders()));
        found.extend(receipts.verify(&directories()).unwrap().iter().map(|verified| verified.said().clone()));
    }
    found.sort_by_key(|statement| statement.transaction);
    statements.sort_by_key(|statement| statement.transaction);
    assert_eq!(found, statements);
    assert_eq!(sign_receipts(&key("a"), &node("a"), orders(), 1, &[]), []);
}

#[test]
fn r13_a_record_of_a_whole_batch_has_no_paths_and_none_of_it_can_be_left_out() {
    let mut statements: Vec<Statement> = (0..20).map(|number| statement(number, committed(number.into()))).collect();
    statements[3].sender = "shop".parse().unwrap();
    let records = sign_receipts(&key("a"), &node("a"), orders(), 1, &statements);
    assert_eq!(records.len(), 2, "who has many statements has a batch of his own");
    let web = &records[1].value;
    let encoded: Vec<Vec<u8>> =
        statements.iter().filter(|one| one.sender == statements[0].sender).map(Statement::encode).collect();
    let receipt = |index: u16, bytes: &[u8]| {
        [&index.to_be_bytes()[..], &(bytes.len() as u16).to_be_bytes(), bytes, &[0]].concat()
    };
    let end: Vec<u8> = (0..).zip(&encoded).flat_map(|(index, bytes)| receipt(index, bytes)).collect();
    assert!(web.ends_with(&end), "statements one after the other, and not one hash");
    assert_eq!(receipts(&records[1]).verify(&directories()).unwrap().len(), 19);
    let with = |kept: &[(u16, &[u8])]| {
        let head = &web[..web.len() - end.len() - 2];
        let rest: Vec<u8> = kept.iter().flat_map(|(index, bytes)| receipt(*index, bytes)).collect();
        let value = [head, &(kept.len() as u16).to_be_bytes(), &rest].concat();
        let Ok(Notice::Receipts(receipts)) = Notice::decode(&value) else { panic!("it reads") };
        receipts.verify(&directories()).map(|said| said.len())
    };
    let all: Vec<(u16, &[u8])> = (0..).zip(encoded.iter().map(Vec::as_slice)).collect();
    assert_eq!(with(&all), Ok(19));
    let refused = |index| Err(NoticeError::Path { node: node("a"), index });
    assert_eq!(with(&all[..18]), refused(0), "without one, the others need paths");
    assert_eq!(with(&all[7..8]), refused(7));
    let mut swapped = all.clone();
    (swapped[4].1, swapped[5].1) = (all[5].1, all[4].1);
    assert_eq!(with(&swapped), refused(0));
}

#[test]
fn large_batches_are_cut_to_records_and_to_trees() {
    let many = limits::RECEIPTS_PER_BATCH * 2 + 1;
    let statements: Vec<Statement> = (0..many)
        .map(|number| {
            let mut random = [0; 10];
            random[2..].copy_from_slice(&(number as u64).to_be_bytes());
            Statement { transaction: TransactionId::from_parts(NOW, random), ..statement(0, all_verdicts()[6]) }
        })
        .collect();
    let records = sign_receipts(&key("a"), &node("a"), orders(), 1, &statements);
    assert!(records.len() >= 3 && records.iter().all(|record| record.value.len() <= limits::NOTICE_BYTES));
    let found: usize = records.iter().map(|record| receipts(record).verify(&directories()).unwrap().len()).sum();
    assert_eq!(found, many);
}

#[test]
fn r13_every_single_bit_change_of_any_notice_is_refused() {
    let statements: Vec<Statement> =
        (0..).zip(all_verdicts()).map(|(number, verdict)| statement(number, verdict)).collect();
    let mut records = sign_receipts(&key("b"), &node("b"), orders(), 1, &statements);
    records.extend(sign_receipts(&key("b"), &node("b"), orders(), 1, &statements[..1]));
    // Of two senders, with paths.
    let shared =
        [statement(1, committed(7)), Statement { sender: "shop".parse().unwrap(), ..statement(2, committed(8)) }];
    records.extend(sign_receipts(&key("b"), &node("b"), orders(), 1, &shared));
    records.push(refusal().sign(&key("b"), &node("b"), orders(), 1));
    records.push(missing().sign(&key("b"), &node("b"), orders(), 1));
    let directories = directories();
    let verified = |value: &[u8]| -> bool {
        match Notice::decode(value) {
            Ok(Notice::Receipts(receipts)) => receipts.verify(&directories).is_ok(),
            Ok(Notice::Refusal(refusal)) => refusal.verify(&directories).is_ok(),
            Ok(Notice::Missing(missing)) => missing.verify(&directories).is_ok(),
            Ok(Notice::Directory(_)) | Err(_) => false,
        }
    };
    for record in records {
        let mut value = record.value;
        assert!(verified(&value));
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            assert!(!verified(&value), "bit {bit} changed and nobody saw");
            value[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..value.len() {
            assert!(!verified(&value[..length]));
        }
        value.push(0);
        assert!(!verified(&value));
    }
}

#[test]
fn r13_who_may_sign_is_what_the_directory_says() {
    let record = |signer: &str, name: &str, version| {
        sign_receipts(&key(signer), &node(name), orders(), version, &[statement(1, committed(7))]).remove(0)
    };
    let verify = |record: NoticeRecord| receipts(&record).verify(&directories()).map(|said| said.len());
    assert_eq!(verify(record("a", "a", 1)), Ok(1));
    assert_eq!(verify(record("b", "a", 1)), Err(NoticeError::Signature { node: node("a") }));
    let stranger = NoticeError::UnknownNode { node: node("z"), destination: orders(), version: 1 };
    assert_eq!(verify(record("a", "z", 1)), Err(stranger));
    let no_voter = NoticeError::UnknownNode { node: node("c"), destination: orders(), version: 2 };
    assert_eq!(verify(record("c", "c", 2)), Err(no_voter));
    let unknown = verify(record("a", "a", 9)).unwrap_err();
    assert_eq!(unknown, NoticeError::UnknownDirectory { version: 9 });
    assert!(unknown.retryable());
}

#[test]
fn r13_committed_is_a_majority_that_agrees_and_complete_is_all() {
    let mut counter = counter();
    assert_eq!(counter.add(&said("a", statement(1, committed(7)))), Added::Counted);
    assert_eq!(counter.agreed(&directories()), None);
    assert_eq!(counter.add(&said("a", statement(1, committed(7)))), Added::Again);
    assert_eq!(counter.agreed(&directories()), None, "a signer counts once");
    // D need not be that of the same parcel.
    let elsewhere = Verdict::Committed(Decided { digest: Digest([9; 32]), ..decided(7) });
    assert_eq!(counter.add(&said("c", statement(1, elsewhere))), Added::Counted);
    let agreed = counter.agreed(&directories()).unwrap();
    assert_eq!((agreed.verdict, agreed.directory, agreed.is_complete()), (committed(7), 1, false));
    assert_eq!(agreed.signers.keys().cloned().collect::<Vec<_>>(), [node("a"), node("c")]);
    assert_eq!(agreed.lacking, [node("b")]);
    counter.add(&said("b", statement(1, committed(7))));
    assert!(counter.agreed(&directories()).unwrap().is_complete());
}

#[test]
fn r13_what_is_about_something_else_is_never_counted() {
    let mut counter = counter();
    let good = statement(1, committed(7));
    let elsewhere =
        sealcast::core::directory::destination_tag(crate::segments::ENVIRONMENT, &"elsewhere".parse().unwrap(), 0);
    let others = [
        said_for(elsewhere, "a", good.clone()),
        said("a", Statement { sender: "shop".parse().unwrap(), ..good.clone() }),
        said("a", statement(2, committed(7))),
        said("a", Statement { deadline: Time(DEADLINE.0 + 1), ..good.clone() }),
        said("a", statement(1, Verdict::Committed(Decided { payload_tag: PayloadTag([4; 32]), ..decided(7) }))),
    ];
    for other in &others {
        assert_eq!(counter.add(other), Added::Elsewhere);
    }
    // Another position or fate is another thing to agree on.
    counter.add(&said("a", statement(1, committed(7))));
    counter.add(&said("b", statement(1, committed(8))));
    counter.add(&said("c", statement(1, Verdict::Rejected(decided(7), Rejection::Conflict))));
    assert_eq!(counter.agreed(&directories()), None);
    assert_eq!(counter.add(&said("b", statement(1, committed(7)))), Added::Contradiction, "the first word stays");
    assert_eq!(counter.agreed(&directories()), None);
}

#[test]
fn r13_signers_that_differ_in_anything_do_not_agree() {
    let first = |number| First { transaction: transaction(99), position: Position { index: 3, number } };
    let of_another = |number| First { transaction: transaction(number), ..first(4) };
    let rejected = |reason| Verdict::Rejected(decided(7), reason);
    let tagged = |tag| Verdict::Committed(Decided { payload_tag: PayloadTag([tag; 32]), ..decided(7) });
    let number = |number| Verdict::Committed(Decided { position: Position { index: 7, number }, ..decided(7) });
    let differing = [
        (rejected(Rejection::Conflict), rejected(Rejection::Predecessor)),
        (rejected(Rejection::NotPermitted), Verdict::Duplicate(decided(7), first(4))),
        (Verdict::Duplicate(decided(7), first(4)), Verdict::Duplicate(decided(7), first(5))),
        (Verdict::Duplicate(decided(7), of_another(98)), Verdict::Duplicate(decided(7), of_another(99))),
        (committed(7), committed(8)),
        (number(2), number(3)),
        (tagged(5), tagged(6)),
        (committed(7), Verdict::Expired { group_time: Time(DEADLINE.0 + 1) }),
        (
            Verdict::Expired { group_time: Time(DEADLINE.0 + 1) },
            Verdict::Forgotten { group_time: Time(DEADLINE.0 + 1) },
        ),
    ];
    for (one, other) in differing {
        // Who knows no payload tag takes any, if the signers agree on it.
        let ticket = Ticket { destination: "orders".parse().unwrap(), transaction: transaction(1), deadline: DEADLINE };
        let mut counter = Counter::new(ticket, orders(), "web".parse().unwrap(), None);
        assert_eq!(counter.add(&said("a", statement(1, one))), Added::Counted);
        assert_eq!(counter.add(&said("b", statement(1, other))), Added::Counted);
        assert_eq!(counter.agreed(&directories()), None, "{one:?} and {other:?}");
        counter.add(&said("c", statement(1, one)));
        let agreed = counter.agreed(&directories()).unwrap();
        assert_eq!((agreed.verdict, agreed.lacking), (one, vec![node("b")]));
    }
}

#[test]
fn r13_signers_of_two_directory_versions_are_not_mixed() {
    let under = |version, verdict| Statement { directory: version, ..statement(1, verdict) };
    let expired = |more| Verdict::Expired { group_time: Time(DEADLINE.0 + more) };
    let mut counter = counter();
    counter.add(&said("a", under(1, expired(5))));
    counter.add(&said("b", under(2, expired(70))));
    counter.add(&said("c", under(2, expired(1))));
    assert_eq!(counter.agreed(&directories()), None, "c is no voter of version 2");
    assert_eq!(counter.add(&said("a", under(2, expired(90)))), Added::Counted, "the same fate under a later version");
    let agreed = counter.agreed(&directories()).unwrap();
    assert_eq!((agreed.directory, agreed.is_complete()), (2, true));
    // What names a version that is not known counts when it is.
    let mut later = self::counter();
    let all = directories();
    let old = Directories::from([(1, all[&1].clone())]);
    for name in ["a", "b"] {
        later.add(&said(name, under(2, committed(7))));
    }
    assert_eq!(later.agreed(&old), None);
    assert!(later.agreed(&all).is_some());
    for version in 3..9 {
        assert_eq!(later.add(&said("a", under(version, committed(7)))), Added::Counted);
    }
    assert_eq!(later.add(&said("a", under(1, committed(7)))), Added::TooMany, "what is kept of a node is bounded");
}

#[test]
fn r13_nodes_that_said_it_under_many_versions_come_together_in_a_late_one() {
    let under = |version, group_time| Statement {
        directory: version,
        ..statement(1, Verdict::Expired { group_time: Time(DEADLINE.0 + group_time) })
    };
    let late = limits::STATEMENTS_PER_NODE as u64 + 3;
    let mut directories = directories();
    let mut draft = draft();
    draft.version = late;
    directories.insert(late, Arc::new(sign(&draft)));
    let mut counter = counter();
    for version in 1..late {
        counter.add(&said("a", under(version, version)));
    }
    assert_eq!(counter.add(&said("b", under(late, 70))), Added::Counted);
    assert_eq!(counter.agreed(&directories), None);
    assert_eq!(counter.add(&said("a", under(late, 80))), Added::Counted);
    assert_eq!(counter.agreed(&directories).unwrap().directory, late);
}

#[test]
fn r06_who_knows_no_payload_is_not_told_what_holders_of_another_are() {
    let ticket = Ticket { destination: "orders".parse().unwrap(), transaction: transaction(1), deadline: DEADLINE };
    let mut counter = Counter::new(ticket, orders(), "web".parse().unwrap(), None);
    let theirs = Decided { payload_tag: PayloadTag([9; 32]), ..decided(4) };
    let reuse = statement(1, Verdict::Rejected(theirs, Rejection::IdReuse));
    for name in ["a", "b", "c"] {
        assert_eq!(counter.add(&said(name, reuse.clone())), Added::Elsewhere);
    }
    assert_eq!(counter.agreed(&directories()), None);
    for name in ["a", "b"] {
        assert_eq!(counter.add(&said(name, statement(1, committed(4)))), Added::Counted, "it contradicts nothing");
    }
    assert_eq!(counter.agreed(&directories()).unwrap().verdict, committed(4));
}

#[test]
fn r26_having_forgotten_contradicts_nothing() {
    let mut counter = counter();
    let forgotten = statement(1, Verdict::Forgotten { group_time: Time(u64::MAX) });
    counter.add(&said("a", forgotten.clone()));
    assert_eq!(counter.add(&said("a", statement(1, committed(7)))), Added::Counted);
    assert_eq!(counter.add(&said("a", forgotten)), Added::Again);
    counter.add(&said("b", statement(1, committed(7))));
    assert_eq!(counter.agreed(&directories()).unwrap().verdict, committed(7));
}

#[test]
fn r22_a_majority_of_refusals_lets_the_sender_seal_anew() {
    let mut refusals = Refusals::new(orders(), refusal().digest);
    let refused = |name: &str, refusal: Refusal| match Notice::decode(
        &refusal.sign(&key(name), &node(name), orders(), 1).value,
    ) {
        Ok(Notice::Refusal(refusal)) => refusal.verify(&directories()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(!refusals.add(&refused("a", Refusal { digest: Digest([1; 32]), ..refusal() })));
    assert!(refusals.add(&refused("a", refusal())));
    assert!(refusals.add(&refused("a", refusal())));
    assert_eq!(refusals.refused(&directories()), None);
    refusals.add(&refused("c", refusal()));
    let found = refusals.refused(&directories()).unwrap();
    assert_eq!(found, ["a", "c"].map(|name| (node(name), RefusalReason::Miscoded)).into());
}

#[test]
fn r22_refusals_under_two_directory_versions_are_not_mixed_and_only_voters_count() {
    let refused =
        |name: &str, version| match Notice::decode(&refusal().sign(&key(name), &node(name), orders(), version).value) {
            Ok(Notice::Refusal(signed)) => signed.verify(&directories()),
            other => panic!("{other:?}"),
        };
    let mut refusals = Refusals::new(orders(), refusal().digest);
    refusals.add(&refused("c", 1).unwrap());
    refusals.add(&refused("a", 2).unwrap());
    assert_eq!(refusals.refused(&directories()), None, "one of each");
    let no_voter = NoticeError::UnknownNode { node: node("c"), destination: orders(), version: 2 };
    assert_eq!(refused("c", 2), Err(no_voter), "c votes no more in version 2");
    refusals.add(&refused("b", 2).unwrap());
    assert_eq!(refusals.refused(&directories()).unwrap().len(), 2);
}

fn refusal() -> Refusal {
    Refusal {
        sender: "web".parse().unwrap(),
        epoch: Epoch([8; 8]),
        parcel: ParcelId::from_parts(NOW, [3; 10]),
        digest: Digest([0xd; 32]),
        reason: RefusalReason::Miscoded,
    }
}

fn missing() -> Missing {
    Missing {
        sender: "web".parse().unwrap(),
        epoch: Epoch([8; 8]),
        parcel: ParcelId::from_parts(NOW, [3; 10]),
        stripes: vec![0..=0, 2..=5, 9..=u32::MAX],
    }
}

#[test]
fn a_missing_notice_names_ascending_ranges_that_stand_apart() {
    let decode = |stripes| {
        let record = Missing { stripes, ..missing() }.sign(&key("a"), &node("a"), orders(), 1);
        assert_eq!(record.key, notice_key(&missing().sender));
        match Notice::decode(&record.value) {
            Ok(Notice::Missing(signed)) => Some(signed.verify(&directories()).unwrap().said().stripes.clone()),
            _ => None,
        }
    };
    assert_eq!(decode(missing().stripes), Some(missing().stripes));
    assert_eq!(decode(vec![]), None);
    assert_eq!(decode(vec![0..=1, 2..=3]), None, "they would be one range");
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = vec![3..=2];
    assert_eq!(decode(backwards), None);
    assert_eq!(decode((0..1000).map(|at| at * 2..=at * 2).collect()).unwrap().len(), limits::MISSING_RANGES);
}

#[test]
fn a_directory_travels_to_everybody() {
    let file = directory().bytes().clone();
    let record = Notice::directory(&file);
    assert_eq!(record.key, [0; 16]);
    assert_eq!(Notice::decode(&record.value), Ok(Notice::Directory(file)));
}

#[test]
fn r13_a_query_is_answered_for_senders_that_may_send_here() {
    let asked = vec![(transaction(1), DEADLINE, Some(PayloadTag([5; 32]))), (transaction(2), DEADLINE, None)];
    let query = Query { epoch: Epoch([8; 8]), time: NOW, asked };
    let record = query.sign(&web(), orders());
    assert!(is_query(&record));
    assert_eq!(Query::verify(&record, orders(), &directory()), Ok(("web".parse().unwrap(), query.clone())));
    for bit in 0..record.len() * 8 {
        let mut changed = record.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Query::verify(&changed, orders(), &directory()).is_err(), "bit {bit} changed and nobody saw");
    }
    let stranger = query.sign(&secret(99), orders());
    assert!(matches!(Query::verify(&stranger, orders(), &directory()), Err(QueryError::UnknownSender { .. })));
    let mut draft = draft();
    draft.senders.get_mut(&"web".parse().unwrap()).unwrap().destinations.clear();
    assert!(matches!(Query::verify(&record, orders(), &sign(&draft)), Err(QueryError::UnknownSender { .. })));
    let elsewhere = query.sign(&web(), DestinationTag([1; 16]));
    assert!(matches!(Query::verify(&elsewhere, orders(), &directory()), Err(QueryError::OtherDestination { .. })));
    // The longest that may be is read, and nothing is longer.
    let longest = Query { asked: vec![query.asked[0]; limits::TICKETS_PER_QUERY], ..query.clone() };
    let mut record = longest.sign(&web(), orders());
    assert_eq!(record.len(), limits::QUERY_BYTES);
    assert_eq!(Query::verify(&record, orders(), &directory()).unwrap().1, longest);
    record.push(0);
    assert!(matches!(Query::verify(&record, orders(), &directory()), Err(QueryError::Field(_))));
}

/// What a node takes for the present at this moment: 100 s after the clocks began, and so much later.
fn present(at: u64) -> Present {
    Present { monotonic: Duration::from_millis(at), wall: Time(100_000 + at), group: Time(99_000 + at) }
}

/// Whether a query is answered that a client of a sender asked at such a time, and that comes at such a moment.
fn is_answered(of: &mut Answered, client: u8, time: u64, at: u64) -> bool {
    let query = Query { epoch: Epoch([client; 8]), time: Time(time), asked: Vec::new() };
    of.is_due(&"web".parse().unwrap(), &query, &present(at))
}

/// What of these queries of one sender is answered, each with the moment at which it comes.
fn answered(of: &mut Answered, queries: &[(u8, u64, u64)]) -> Vec<bool> {
    queries.iter().map(|(client, time, at)| is_answered(of, *client, *time, *at)).collect()
}

#[test]
fn r13_a_query_is_answered_once_however_often_and_late_it_is_replayed() {
    let mut of = Answered::default();
    // It lies in two partitions; its client asks again a moment later, which is too soon, and then in time.
    let queries = [(1, 100_500, 0), (1, 100_500, 3), (1, 100_501, 50), (1, 100_600, 100)];
    assert_eq!(answered(&mut of, &queries), [true, false, false, true]);
    // An hour and a day later nobody gains anything by them.
    let hour = 3_600_000;
    let queries = [(1, 100_500, hour), (1, 100_600, hour), (1, 100_501, 24 * hour)];
    assert_eq!(answered(&mut of, &queries), [false; 3]);
    assert_eq!(answered(&mut of, &[(1, 100_601, 24 * hour)]), [true]);
}

#[test]
fn r13_clients_of_one_sender_do_not_silence_each_other_though_their_clocks_differ() {
    let mut of = Answered::default();
    // One's clock is an hour ahead, another's stands; they ask every second. Another sender's queries are its own.
    for second in 0..20u64 {
        let at = second * 1000;
        let queries = [(1, 3_600_000 + at, at), (2, second + 1, at + 300), (3, 100_000 + at, at + 500)];
        assert_eq!(answered(&mut of, &queries), [true; 3], "second {second}");
    }
    // All of them together have a bound, and forgetting of a crowd only who asked first.
    let crowd: Vec<_> = (0..200u8).map(|client| (client, 130_000, 30_000)).collect();
    let heard = answered(&mut of, &crowd).into_iter().filter(|heard| *heard).count();
    assert_eq!(heard, 32);
    let query = Query { epoch: Epoch([1; 8]), time: NOW, asked: Vec::new() };
    assert!(of.is_due(&"shop".parse().unwrap(), &query, &present(30_000)), "another sender");
}

#[test]
fn r13_whoever_replays_what_many_clients_once_asked_silences_none_that_asks_now() {
    let mut of = Answered::default();
    // More clients than are remembered ask, ten a second; their queries are kept by a stranger.
    let mut kept = Vec::new();
    for client in 0..200u8 {
        let at = u64::from(client) * 100;
        kept.push((client, 100_000 + at));
        assert!(is_answered(&mut of, client, 100_000 + at, at), "client {client}");
    }
    // He plays all of them again, over and over, between any two questions of one client that asks every second, and of
    // others that have just begun. A restarted node, which remembers nothing, and what is a day old by then, are no different.
    for (mut of, from) in [(of, 20_000), (Answered::default(), 21_000), (Answered::default(), 86_400_000)] {
        for second in 1..30u64 {
            let at = from + second * 1000;
            let replays: Vec<_> = kept.iter().map(|(client, time)| (*client, *time, at)).collect();
            let heard = answered(&mut of, &replays).into_iter().filter(|heard| *heard).count();
            assert!(heard <= 8, "{heard} replays are answered in second {second} from {from}");
            let (old, new) = (201, 210 + second as u8);
            assert!(is_answered(&mut of, old, 100_010 + at, at + 10), "second {second} from {from}: who asked before");
            assert!(is_answered(&mut of, new, 100_010 + at, at + 10), "second {second} from {from}: who begins");
        }
    }
}

proptest! {
    /// Bytes from anywhere never make a reader panic, and what reads writes the same bytes.
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..6u8) {
        if bytes.len() > 6 {
            bytes[..6].copy_from_slice(&[b'S', b'C', b'N', b'T', 1, kind]);
        }
        let _ = Notice::decode(&bytes);
        let _ = Query::verify(&bytes, orders(), &directory());
        if let Ok(statement) = Statement::decode(&bytes) {
            prop_assert_eq!(statement.encode(), bytes);
        }
    }
}
