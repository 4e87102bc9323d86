//! Where shards go, and what *accepted* promises (R14, R15): after it, the loss of any one domain leaves k distinct shards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sealcast::core::place::{Acceptance, Domains, KnownPartition, Place, Placement, Standing};

const START: Duration = Duration::from_secs(100);

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn topic(domains: usize, each: usize, copies: u8, away: &BTreeSet<usize>) -> Vec<KnownPartition> {
    (0..domains * each)
        .map(|number| KnownPartition {
            number: number as i32,
            domain: format!("broker-{}", number % domains).into(),
            up: !away.contains(&(number % domains)),
            copies,
        })
        .collect()
}

fn known(partitions: &[KnownPartition]) -> Domains {
    let mut domains = Domains::new();
    domains.update(partitions, START);
    domains
}

/// What a coded profile has for so many domains: m is ceil(k / (b - 1)).
fn coded(domains: usize) -> (usize, usize) {
    (8, 8 + 8usize.div_ceil(domains - 1))
}

fn domain_of(domains: &Domains, place: Place) -> Arc<str> {
    domains.of(place.partition).unwrap().0.clone()
}

/// The promise itself, computed apart from the code under test: without any one domain, k distinct shards are left.
fn survives_any_domain(k: usize, held: &BTreeMap<Arc<str>, BTreeSet<u16>>) -> bool {
    held.keys().all(|lost| {
        let left: BTreeSet<u16> =
            held.iter().filter(|(name, _)| *name != lost).flat_map(|(_, shards)| shards.iter().copied()).collect();
        left.len() >= k
    })
}

#[test]
fn shards_spread_evenly_and_data_stands_first_in_every_queue() {
    for count in 2..=6 {
        let domains = known(&topic(count, 1, 1, &BTreeSet::new()));
        let (k, n) = coded(count);
        let mut placement = Placement::new(k, n, 5);
        let places = placement.plan(&domains, START);
        assert_eq!(places.len(), n, "every shard goes out once when all is well");
        let mut queues: BTreeMap<Arc<str>, Vec<u16>> = BTreeMap::new();
        for place in &places {
            queues.entry(domain_of(&domains, *place)).or_default().push(place.shard);
        }
        assert_eq!(queues.len(), count);
        for queue in queues.values() {
            assert!(queue.len() <= n.div_ceil(count));
            assert!(queue.is_sorted(), "data shards have the lower numbers and go first");
        }
        assert_eq!(placement.plan(&domains, START), [], "nothing new without news");
    }
}

#[test]
fn every_partition_of_a_domain_carries_some() {
    let domains = known(&topic(2, 3, 1, &BTreeSet::new()));
    let used: BTreeSet<i32> = (0..3)
        .flat_map(|rotation| Placement::new(8, 16, rotation).plan(&domains, START))
        .map(|place| place.partition)
        .collect();
    assert_eq!(used.len(), 6);
}

#[test]
fn r14_of_three_brokers_with_one_away_its_shards_go_to_both_others() {
    let domains = known(&topic(3, 1, 1, &BTreeSet::from([1])));
    let mut placement = Placement::new(8, 12, 0);
    let places = placement.plan(&domains, START);
    assert!(places.iter().all(|place| place.partition != 1));
    assert_eq!(places.len(), 16, "4 + 4 of their own and 4 on both");
    places.iter().for_each(|place| placement.acknowledged(*place));
    assert!(placement.accepted(&domains, START));
}

#[test]
fn r15_a_broker_that_goes_away_in_between_costs_only_its_shards() {
    let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
    let mut placement = Placement::new(8, 12, 0);
    let places = placement.plan(&domains, START);
    let mut tokens = Vec::new();
    for place in &places {
        tokens.push((domains.sent(place.partition, START).unwrap(), *place));
    }
    for (token, place) in &tokens {
        if place.partition == 2 {
            domains.failed(token, START + milliseconds(5));
            placement.failed(*place);
        } else {
            domains.acknowledged(token, milliseconds(2), START + milliseconds(2));
            placement.acknowledged(*place);
        }
    }
    assert!(!placement.accepted(&domains, START + milliseconds(6)));
    let again = placement.plan(&domains, START + milliseconds(6));
    assert_eq!(again.len(), 8, "its four shards to both others");
    assert!(again.iter().all(|place| place.partition != 2));
    again.iter().for_each(|place| placement.acknowledged(*place));
    assert!(placement.accepted(&domains, START + milliseconds(6)));
    assert_eq!(domains.standing("broker-2", START + milliseconds(500)), Standing::Absent);
    assert_ne!(domains.standing("broker-2", START + milliseconds(1500)), Standing::Absent, "tried again within 2 s");
}

#[test]
fn r14_a_late_domain_keeps_its_shards_and_others_get_copies() {
    let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
    for partition in 0..3 {
        for _ in 0..8 {
            let token = domains.sent(partition, START).unwrap();
            let took = if partition == 0 { 200 } else { 3 };
            domains.acknowledged(&token, milliseconds(took), START + milliseconds(took));
        }
    }
    let now = START + milliseconds(300);
    assert_eq!(domains.standing("broker-0", now), Standing::Late);
    assert_eq!(domains.standing("broker-1", now), Standing::Present);
    let mut placement = Placement::new(8, 12, 0);
    let places = placement.plan(&domains, now);
    assert_eq!(places.iter().filter(|place| place.partition == 0).count(), 4);
    places.iter().filter(|place| place.partition != 0).for_each(|place| placement.acknowledged(*place));
    assert!(placement.accepted(&domains, now), "without a word from the late one");
}

#[test]
fn r15_a_silent_broker_is_noticed_by_what_it_leaves_waiting() {
    let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
    for partition in 0..3 {
        let token = domains.sent(partition, START).unwrap();
        domains.acknowledged(&token, milliseconds(4), START + milliseconds(4));
    }
    let _waiting = domains.sent(1, START + milliseconds(10)).unwrap();
    assert_eq!(domains.standing("broker-1", START + milliseconds(20)), Standing::Present);
    assert_eq!(domains.standing("broker-1", START + milliseconds(40)), Standing::Late);
}

#[test]
fn r14_one_domain_left_withholds_by_name_and_still_sends() {
    let domains = known(&topic(3, 1, 1, &BTreeSet::from([0, 2])));
    let mut placement = Placement::new(8, 12, 0);
    let places = placement.plan(&domains, START);
    assert_eq!(places.len(), 12);
    places.iter().for_each(|place| placement.acknowledged(*place));
    assert_eq!(placement.acceptance(&domains, START), Acceptance::Withheld(vec!["broker-0".into(), "broker-2".into()]));
    let single = known(&topic(1, 2, 1, &BTreeSet::new()));
    let mut placement = Placement::new(1, 3, 0);
    placement.plan(&single, START).iter().for_each(|place| placement.acknowledged(*place));
    assert_eq!(placement.acceptance(&single, START), Acceptance::Withheld(vec!["broker-0".into()]));
    // Nothing is away there; of two of which one is left, one is.
    assert!(single.only_one(START) && !domains.only_one(START));
}

#[test]
fn r14_one_acknowledgement_of_a_replicated_topic_proves_two_domains() {
    let domains = known(&topic(3, 1, 2, &BTreeSet::new()));
    let mut placement = Placement::new(1, 1, 0);
    let places = placement.plan(&domains, START);
    assert_eq!(places.len(), 1);
    assert_eq!(placement.acceptance(&domains, START), Acceptance::Pending);
    placement.acknowledged(places[0]);
    assert_eq!(placement.acceptance(&domains, START), Acceptance::Accepted);
}

#[test]
fn r15_what_a_domain_acknowledged_and_took_with_it_is_topped_up() {
    let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
    let mut placement = Placement::new(8, 12, 0);
    placement.plan(&domains, START).iter().for_each(|place| placement.acknowledged(*place));
    assert!(placement.accepted(&domains, START));
    let without = topic(3, 1, 1, &BTreeSet::from([0]));
    domains.update(&without, START + milliseconds(1));
    assert_eq!(placement.plan(&domains, START + milliseconds(5_000)), []);
    let topped_up = placement.plan(&domains, START + milliseconds(10_100));
    assert_eq!(topped_up.len(), 8);
    // Lost with the domain, and not there yet in others: the promise is not kept before the copies are acknowledged.
    let now = START + milliseconds(10_100);
    assert_eq!(placement.acceptance(&domains, now), Acceptance::Pending);
    topped_up.iter().for_each(|place| placement.acknowledged(*place));
    assert_eq!(placement.acceptance(&domains, now), Acceptance::Accepted);
    // Back again: it counts at once.
    domains.update(&topic(3, 1, 1, &BTreeSet::new()), START + milliseconds(11_000));
    assert_eq!(domains.standing("broker-0", START + milliseconds(11_000)), Standing::Present);
}

proptest! {
    /// Whatever fails or falls silent, what is called accepted survives any one domain; and as long as two domains acknowledge,
    /// it becomes accepted.
    #[test]
    fn r14_accepted_is_a_promise_that_holds(
        count in 2usize..6,
        each in 1usize..3,
        small in any::<bool>(),
        rotation in 0usize..32,
        answers in proptest::collection::vec(0u8..4, 0..200),
        dead in proptest::collection::btree_set(0usize..6, 0..5),
    ) {
        let partitions = topic(count, each, 1, &BTreeSet::new());
        let mut domains = known(&partitions);
        let (k, n) = if small { (1, 3) } else { coded(count) };
        let mut placement = Placement::new(k, n, rotation);
        let mut held: BTreeMap<Arc<str>, BTreeSet<u16>> = BTreeMap::new();
        let mut now = START;
        let mut answers = answers.into_iter();
        let mut waiting = Vec::new();
        for round in 0..60 {
            now += milliseconds(300);
            for place in placement.plan(&domains, now) {
                let token = domains.sent(place.partition, now).unwrap();
                waiting.push((token, place));
            }
            now += milliseconds(3);
            for (token, place) in std::mem::take(&mut waiting) {
                let dead = dead.contains(&(place.partition as usize % count));
                match (dead, answers.next().unwrap_or(0)) {
                    (true, _) | (false, 1) => {
                        domains.failed(&token, now);
                        placement.failed(place);
                    }
                    (false, 2) if round < 40 => waiting.push((token, place)),
                    (false, _) => {
                        domains.acknowledged(&token, Duration::MAX, now);
                        placement.acknowledged(place);
                        held.entry(domain_of(&domains, place)).or_default().insert(place.shard);
                    }
                }
            }
            prop_assert!(!placement.accepted(&domains, now) || survives_any_domain(k, &held));
            domains.update(&partitions, now);
        }
        let alive = (0..count).filter(|domain| !dead.contains(domain)).count();
        prop_assert_eq!(placement.accepted(&domains, now), alive >= 2);
        prop_assert_eq!(survives_any_domain(k, &held) && !held.is_empty(), alive >= 2);
    }
}

/// When the last of [`after`] was acknowledged.
const END: Duration = Duration::from_secs(1_000);

/// Domains whose acknowledgements took so many milliseconds, one after the other, the last of each at [`END`].
fn after(took: [&[u64]; 3]) -> Domains {
    let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
    for (partition, times) in (0..).zip(took) {
        let mut now = END - milliseconds(times.iter().sum());
        for time in times {
            let token = domains.sent(partition, now).unwrap();
            now += milliseconds(*time);
            domains.acknowledged(&token, milliseconds(*time), now);
        }
    }
    domains
}

#[test]
fn r14_what_slows_all_domains_alike_makes_none_late() {
    let mut domains = after([&[5; 20]; 3]);
    for partition in 0..3 {
        let _waits = domains.sent(partition, END).unwrap();
    }
    let all = |domains: &Domains, at: u64| {
        ["broker-0", "broker-1", "broker-2"].map(|name| domains.standing(name, END + milliseconds(at)))
    };
    assert_eq!(all(&domains, 2_000), [Standing::Present; 3], "this process was held up, or all are under load");
    let mut domains = after([&[5; 20], &[40, 60, 40, 60, 40, 60, 40, 60], &[50; 8]]);
    let _waits = domains.sent(1, END).unwrap();
    assert_eq!(domains.standing("broker-0", END), Standing::Present);
    assert_eq!(domains.standing("broker-1", END), Standing::Present, "within twice the others' median");
}

#[test]
fn r14_one_slow_answer_among_many_says_nothing_while_the_others_have_such_too() {
    let spread: Vec<u64> = (0..64).map(|number| if number % 8 == 0 { 70 } else { 5 }).collect();
    let mut domains = after([&spread; 3]);
    let _waits = domains.sent(2, END).unwrap();
    assert_eq!(domains.standing("broker-2", END + milliseconds(210)), Standing::Present);
    assert_eq!(domains.standing("broker-2", END + milliseconds(211)), Standing::Late);
    let steady = after([&spread, &spread, &[71; 8]]);
    assert_eq!(steady.standing("broker-2", END), Standing::Late, "all of its recent ones are slow");
}

#[test]
fn r14_a_domain_that_is_slow_now_and_then_is_not_late_and_one_that_always_is_is() {
    // Full queues: most of its recent times are long, and then comes a short one.
    let mut times = vec![200; 24];
    let standing = |times: &[u64]| after([&[5; 20], times, &[5; 20]]).standing("broker-1", END);
    assert_eq!(standing(&times), Standing::Late);
    times.push(9);
    assert_eq!(standing(&times), Standing::Present, "it answers as fast as the others");
    times.extend([200; 7]);
    assert_eq!(standing(&times), Standing::Present);
    times.push(200);
    assert_eq!(standing(&times), Standing::Late, "the short one is no longer recent");
}

#[test]
fn r14_a_short_time_within_half_a_second_is_recent() {
    let standing = |times: &[u64]| after([&[5; 20], times, &[5; 20]]).standing("broker-1", END);
    let with = |more: usize| [vec![5], vec![22; more]].concat();
    assert_eq!(standing(&with(22)), Standing::Present, "484 ms ago it was as fast as the others");
    assert_eq!(standing(&with(23)), Standing::Late);
}

#[test]
fn r14_half_a_second_is_recent_and_a_bad_moment_remembered_at_a_thousand_a_second() {
    // A thousand a second on each partition, which stand in line: each is acknowledged a millisecond after the one before it.
    let standing = |took: &dyn Fn(i32, u64) -> u64| {
        let mut domains = known(&topic(3, 1, 1, &BTreeSet::new()));
        for number in 0..3_000 {
            for partition in 0..3 {
                let (took, at) = (milliseconds(took(partition, number)), END + milliseconds(number));
                let token = domains.sent(partition, at - took).unwrap();
                domains.acknowledged(&token, took, at);
            }
        }
        domains.standing("broker-0", END + milliseconds(2_999))
    };
    let since = |last: u64| move |partition, number| if partition == 0 && number > 2_999 - last { 100 } else { 5 };
    assert_eq!([standing(&since(499)), standing(&since(500))], [Standing::Present, Standing::Late]);
    // A queue that grows: each takes longer than the one before it, from half a second ago on.
    let grows = |partition, number: u64| if partition == 0 { (number + 1).saturating_sub(2_500).max(1) } else { 5 };
    assert_eq!(standing(&grows), Standing::Present);
    // A tenth of what another of two took was long, two seconds ago and not since.
    let once = |partition, number| match (partition, number) {
        (0, 2_000..) => 100,
        (1, 700..1_000) => 110,
        _ => 5,
    };
    assert_eq!(standing(&once), Standing::Present);
}

#[test]
fn r14_what_one_other_of_two_takes_in_a_bad_moment_is_not_late() {
    let spread: Vec<u64> = (0..64).map(|number| if number % 8 == 0 { 70 } else { 5 }).collect();
    let standing = |times: &[u64]| after([&spread, &[5; 20], times]).standing("broker-2", END);
    assert_eq!([standing(&[69; 8]), standing(&[71; 8])], [Standing::Present, Standing::Late]);
    // Ten seconds later that moment is of the past.
    let standing = |since: usize| {
        let once = [vec![1_000; 3], vec![250; since]].concat();
        after([&once, &[100; 8], &[600; 8]]).standing("broker-2", END)
    };
    assert_eq!([standing(20), standing(41)], [Standing::Present, Standing::Late]);
}

#[test]
fn r15_one_silent_broker_does_not_excuse_another() {
    let mut domains = after([&[200; 20], &[5; 20], &[5; 20]]);
    let (_first, _second) = (domains.sent(0, END).unwrap(), domains.sent(1, END + milliseconds(100)).unwrap());
    let standing = |name: &str, at: u64| domains.standing(name, END + milliseconds(at));
    // The one that takes 200 ms is broker-0's; 500 ms are as long as that excuses anybody.
    assert_eq!(standing("broker-1", 600), Standing::Present);
    assert_eq!(standing("broker-1", 601), Standing::Late);
    assert_eq!(standing("broker-0", 601), Standing::Late);
}

#[test]
fn r15_what_stands_in_a_queue_from_which_quick_answers_come_is_not_late() {
    let mut domains = after([&[5; 20]; 3]);
    let _waits = domains.sent(1, END).unwrap();
    for number in 1..20 {
        let at = END + milliseconds(10 * number);
        let token = domains.sent(1, at).unwrap();
        domains.acknowledged(&token, milliseconds(5), at + milliseconds(5));
        assert_eq!(domains.standing("broker-1", at + milliseconds(5)), Standing::Present, "{number}");
    }
    let last = END + milliseconds(195);
    assert_eq!(domains.standing("broker-1", last + milliseconds(20)), Standing::Present);
    assert_eq!(domains.standing("broker-1", last + milliseconds(21)), Standing::Late);
}

#[test]
fn r15_a_broker_that_has_become_slow_is_late_though_its_answers_come_one_after_the_other() {
    let mut domains = after([&[5; 20]; 3]);
    let (mut tokens, mut late) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let now = END + milliseconds(10 * number);
        tokens.push(domains.sent(1, now).unwrap());
        if let Some(token) = number.checked_sub(20).and_then(|first| tokens.get(first as usize)) {
            domains.acknowledged(token, milliseconds(200), now);
        }
        if domains.standing("broker-1", now) == Standing::Late {
            late.push(number);
        }
    }
    assert_eq!(late, (3..100).collect::<Vec<_>>(), "from the first moment over 20 ms");
}

#[test]
fn r15_one_silent_partition_makes_its_domain_late_though_others_of_it_answer() {
    let mut domains = known(&topic(3, 2, 1, &BTreeSet::new()));
    let [silent, answers] = [0, 3];
    assert_eq!(domains.of(silent), domains.of(answers), "a rack of two brokers");
    for partition in 0..6 {
        let token = domains.sent(partition, END).unwrap();
        domains.acknowledged(&token, milliseconds(5), END + milliseconds(5));
    }
    let _waits = domains.sent(silent, END + milliseconds(5)).unwrap();
    let token = domains.sent(answers, END + milliseconds(21)).unwrap();
    let now = END + milliseconds(26);
    domains.acknowledged(&token, milliseconds(5), now);
    assert_eq!(domains.standing("broker-0", now), Standing::Late);
}

#[test]
fn r15_what_waits_in_this_process_is_not_the_domains() {
    let mut domains = after([&[4; 8]; 3]);
    for _ in 0..8 {
        let token = domains.sent(0, END).unwrap();
        domains.acknowledged(&token, milliseconds(4), END + milliseconds(400));
    }
    assert_eq!(domains.standing("broker-0", END + milliseconds(400)), Standing::Present);
}
