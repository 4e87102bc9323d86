//! How each domain of a topic does: present, late or absent, from what the transport says and from how long
//! acknowledgements take. Must not know stripes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{ALWAYS_LATE, GONE, LEFT_ALONE, NEVER_LATE};

/// So many of a domain's last acknowledgements say what it usually takes, and are recent however long ago they came.
const LAST: usize = 8;

/// All are recent, too, that came within this long before the last: under full load a queue is long now here and now there, and
/// eight acknowledgements come within milliseconds.
const LATELY: Duration = Duration::from_millis(500);

/// What came longer than this before the last says nothing of bad moments of now, unless it is among the [`LAST`]. Of over 410
/// acknowledgements a second [`MOST`] are less.
const REMEMBERED: Duration = Duration::from_secs(10);

/// So many acknowledgements of a domain are remembered at most: 128 KiB.
const MOST: usize = 4096;

/// With over [`OFTEN`] of them, bad moments are looked for only so often: that passes over all.
const EVERY: Duration = Duration::from_millis(10);

/// See [`EVERY`].
const OFTEN: usize = 64;

/// Most acknowledgements of a partition that none later was quicker than: they are kept apart by as much as makes these last for
/// [`LATELY`] while each takes longer than the one before.
const QUICK: usize = 64;

/// One in so many times is longer than what counts as usual in a bad moment, so that a domain like the others is hardly ever
/// called late.
const OUTLIERS: usize = 16;

/// A record that waits, while nothing quicker comes from its partition, makes its domain late once it has waited so many times as
/// long as the others take or leave waiting: with two times, domains were late under full load that were not slow
/// (docs/decisions.md).
const SILENT: u32 = 3;

/// Bad moments of others excuse silence no longer than this.
const EXCUSED: Duration = Duration::from_millis(500);

/// A partition as the transport knows it now, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPartition {
    /// Its number.
    pub number: i32,
    /// What it fails with.
    pub domain: Arc<str>,
    /// Whether a leader is known and its connection stands.
    pub up: bool,
    /// In how many domains an acknowledged record lies.
    pub copies: u8,
}

/// How a domain does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Up, and about as fast as the others.
    Present,
    /// Up, but slow or silent beside the others, and for over 20 ms ([`Domains::standing`]): its shards are copied to others.
    Late,
    /// No leader, no connection, or it failed within the last second.
    Absent,
    /// Absent for over ten seconds: what it acknowledged is no longer counted on.
    Gone,
}

/// One record on its way, for [`Domains::acknowledged`] or [`Domains::failed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendToken {
    domain: Arc<str>,
    partition: i32,
    number: u64,
}

/// One acknowledgement.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Duration,
    took: Duration,
}

#[derive(Debug, Default)]
struct Domain {
    /// Its partitions that are up, ascending by number, with their copies.
    partitions: Vec<(i32, u8)>,
    /// The acknowledgements that are remembered: at least the [`LAST`].
    heard: VecDeque<Heard>,
    /// Of each partition those that no later one was quicker than: the first is the oldest and the quickest.
    quick: BTreeMap<i32, VecDeque<Heard>>,
    /// The median time of the [`LAST`] of them; `None` before the first.
    usual: Option<Duration>,
    /// The shortest time of the recent ones; `None` before the first.
    quickest: Option<Duration>,
    /// What an acknowledgement takes in a bad moment: all but one in [`OUTLIERS`] were quicker; `None` before the first.
    bad: Option<Duration>,
    /// When that was looked for.
    looked: Duration,
    /// When each record still on its way was sent, by partition; the first is the oldest. None is empty.
    on_the_way: BTreeMap<i32, BTreeMap<u64, Duration>>,
    /// Since when it is away: no partition up, or nothing but failures.
    away_since: Option<Duration>,
    failed_at: Option<Duration>,
    listed: bool,
}

impl Domain {
    fn away(&self, now: Duration) -> bool {
        self.partitions.is_empty() || self.failed_at.is_some_and(|at| now.saturating_sub(at) < LEFT_ALONE)
    }

    fn hear(&mut self, partition: i32, heard: Heard) {
        let since = |of: &Heard| heard.at.saturating_sub(of.at);
        while self.heard.len() >= MOST
            || self.heard.len() >= LAST && self.heard.front().is_some_and(|of| since(of) >= REMEMBERED)
        {
            self.heard.pop_front();
        }
        self.heard.push_back(heard);
        let mut last: Vec<_> = self.heard.iter().rev().take(LAST).map(|of| of.took).collect();
        self.usual = median(&mut last);

        let quick = self.quick.entry(partition).or_default();
        while quick.back().is_some_and(|of| of.took >= heard.took) {
            quick.pop_back();
        }
        if quick.back().is_none_or(|of| since(of) >= LATELY / QUICK as u32) {
            if quick.len() == QUICK {
                quick.pop_front();
            }
            quick.push_back(heard);
        }
        let lately = self.quick.values().filter_map(|quick| quick.iter().find(|of| since(of) < LATELY));
        self.quickest = lately.map(|of| of.took).chain(last).min();

        if self.heard.len() <= OFTEN || heard.at.saturating_sub(self.looked) >= EVERY {
            self.looked = heard.at;
            let mut times: Vec<Duration> = self.heard.iter().map(|of| of.took).collect();
            let outlier = times.len() - 1 - times.len() / OUTLIERS;
            self.bad = Some(*times.select_nth_unstable(outlier).1);
        }
    }

    /// A record is no longer on its way; when it was sent.
    fn take(&mut self, token: &SendToken) -> Option<Duration> {
        let there = self.on_the_way.get_mut(&token.partition)?;
        let sent = there.remove(&token.number);
        if there.is_empty() {
            self.on_the_way.remove(&token.partition);
        }
        sent
    }

    /// How long the oldest record of each partition that has one on its way has waited.
    fn waiting(&self, now: Duration) -> impl Iterator<Item = (i32, Duration)> {
        let oldest = self.on_the_way.iter().filter_map(|(partition, sent)| Some((*partition, sent.values().next()?)));
        oldest.map(move |(partition, sent)| (partition, now.saturating_sub(*sent)))
    }

    /// How long the oldest record on its way has waited.
    fn waits(&self, now: Duration) -> Duration {
        self.waiting(now).map(|(_, waits)| waits).max().unwrap_or_default()
    }

    /// Whether in one of its partitions a record has waited longer than this, and for as long nothing came from there that was
    /// quicker.
    fn silent(&self, limit: Duration, now: Duration) -> bool {
        let is_quick = |of: &Heard| of.took <= limit && now.saturating_sub(of.at) <= limit;
        let answers = |partition| self.quick.get(&partition).is_some_and(|quick| quick.iter().any(is_quick));
        self.waiting(now).any(|(partition, waits)| waits > limit && !answers(partition))
    }
}

/// The two in the middle, the shorter first; of an odd number both are the one that is.
fn middle(times: &mut [Duration]) -> Option<(Duration, Duration)> {
    times.sort_unstable();
    let lower = times.get(times.len().checked_sub(1)? / 2)?;
    Some((*lower, *times.get(times.len() / 2)?))
}

fn median(times: &mut [Duration]) -> Option<Duration> {
    middle(times).map(|(lower, upper)| (lower + upper) / 2)
}

/// The domains of one topic. Times are monotonic.
#[derive(Debug, Default)]
pub struct Domains {
    domains: BTreeMap<Arc<str>, Domain>,
    domain_of: BTreeMap<i32, (Arc<str>, u8)>,
    next_token: u64,
}

impl Domains {
    /// Knows no partition yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the partitions as the transport knows them now. A partition without a leader (empty domain) keeps the domain
    /// that it was last seen in.
    pub fn update(&mut self, partitions: &[KnownPartition], now: Duration) {
        for domain in self.domains.values_mut() {
            domain.partitions.clear();
            domain.listed = false;
        }
        for partition in partitions {
            let (name, copies) = if partition.domain.is_empty() {
                match self.domain_of.get(&partition.number) {
                    Some(known) => known.clone(),
                    None => continue,
                }
            } else {
                (partition.domain.clone(), partition.copies)
            };
            self.domain_of.insert(partition.number, (name.clone(), copies));
            let domain = self.domains.entry(name).or_default();
            domain.listed = true;
            if partition.up && !partition.domain.is_empty() {
                domain.partitions.push((partition.number, copies));
            }
        }
        self.domains.retain(|_, domain| domain.listed || !domain.on_the_way.is_empty());
        for domain in self.domains.values_mut() {
            domain.partitions.sort_unstable();
            let Domain { partitions, quick, .. } = domain;
            quick.retain(|partition, _| partitions.iter().any(|(number, _)| number == partition));
            if domain.away(now) {
                domain.away_since.get_or_insert(now);
            } else if domain.failed_at.is_none() {
                domain.away_since = None;
            }
        }
    }

    /// A record was handed to the transport for this partition. `None` for a partition that is not known.
    pub fn sent(&mut self, partition: i32, now: Duration) -> Option<SendToken> {
        let (name, _) = self.domain_of.get(&partition)?;
        let domain = self.domains.get_mut(name)?;
        let number = self.next_token;
        self.next_token += 1;
        domain.on_the_way.entry(partition).or_default().insert(number, now);
        Some(SendToken { domain: name.clone(), partition, number })
    }

    /// The transport acknowledged a record `took` after it got it. That may be less than the time until the caller heard of
    /// it: what waits in this process is not the domain's.
    pub fn acknowledged(&mut self, token: &SendToken, took: Duration, now: Duration) {
        let Some(domain) = self.domains.get_mut(&token.domain) else { return };
        if let Some(sent) = domain.take(token) {
            let took = took.min(now.saturating_sub(sent));
            domain.hear(token.partition, Heard { at: now, took });
            domain.failed_at = None;
            if !domain.partitions.is_empty() {
                domain.away_since = None;
            }
        }
    }

    /// The transport gave a record up because nobody acknowledged it: the domain is left alone for a moment.
    pub fn failed(&mut self, token: &SendToken, now: Duration) {
        let Some(domain) = self.domains.get_mut(&token.domain) else { return };
        if domain.take(token).is_some() {
            domain.failed_at = Some(now);
            domain.away_since.get_or_insert(now);
        }
    }

    /// Whether what was sent is no longer of interest (refused for good, or the transport closed): no word about the domain.
    pub fn forgotten(&mut self, token: &SendToken) {
        if let Some(domain) = self.domains.get_mut(&token.domain) {
            domain.take(token);
        }
    }

    /// Whether a domain is away: [`Standing::Absent`] or [`Standing::Gone`], of which one is that is not known; `None` for one that
    /// is up. Cheaper than [`Self::standing`], which compares it with the others.
    pub(super) fn absence(&self, name: &str, now: Duration) -> Option<Standing> {
        let Some(domain) = self.domains.get(name) else { return Some(Standing::Gone) };
        let gone = |since| now.saturating_sub(since) > GONE;
        domain.away(now).then(|| if domain.away_since.is_some_and(gone) { Standing::Gone } else { Standing::Absent })
    }

    /// How a domain does; [`Standing::Gone`] for one that is not known. What makes one late: "When a domain is late" in
    /// docs/decisions.md.
    pub fn standing(&self, name: &str, now: Duration) -> Standing {
        if let Some(absence) = self.absence(name, now) {
            return absence;
        }
        let Some(domain) = self.domains.get(name) else { return Standing::Gone };
        let of = |time: &dyn Fn(&Domain) -> Option<Duration>| {
            let others = self.domains.iter().filter(|(other, domain)| other.as_ref() != name && !domain.away(now));
            others.filter_map(|(_, domain)| time(domain)).collect::<Vec<_>>()
        };
        let Some(usual) = median(&mut of(&|domain| domain.usual)) else {
            return if domain.usual.unwrap_or_default().max(domain.waits(now)) > ALWAYS_LATE {
                Standing::Late
            } else {
                Standing::Present
            };
        };
        // Every recent time, over twice the others' median (R14): under load that fills all queues some are, now here and now
        // there, and copies would only add to it. Below what the others take in a bad moment it means nothing.
        let (_, bad) = middle(&mut of(&|domain| domain.bad)).unwrap_or_default();
        let late = domain.quickest.unwrap_or_default() > (usual * 2).max(bad).max(NEVER_LATE);
        // One record that waits says less than many that came, and what slows all alike, load or a pause of this process, lets
        // the others' records wait too; one other that is silent itself does not excuse it. Where quick answers come in between, it
        // stands in a queue.
        let (others_wait, _) = middle(&mut of(&|domain| Some(domain.waits(now)))).unwrap_or_default();
        let limit =
            (usual.max(bad) * SILENT).min(EXCUSED.max(usual * SILENT)).max(others_wait * SILENT).max(NEVER_LATE);
        if late || domain.silent(limit, now) { Standing::Late } else { Standing::Present }
    }

    /// Every domain of the topic with its standing, ascending by name.
    pub fn all(&self, now: Duration) -> Vec<(Arc<str>, Standing)> {
        self.domains.keys().map(|name| (name.clone(), self.standing(name, now))).collect()
    }

    /// The domain of a partition and its copies.
    pub fn of(&self, partition: i32) -> Option<(&Arc<str>, u8)> {
        self.domain_of.get(&partition).map(|(name, copies)| (name, *copies))
    }

    /// The partitions of a domain that are up, ascending, with their copies.
    pub(super) fn partitions(&self, name: &str) -> &[(i32, u8)] {
        self.domains.get(name).map_or(&[], |domain| &domain.partitions)
    }

    /// How many domains the topic has, up or not: what a coded profile is chosen for.
    pub fn count(&self) -> usize {
        self.domains.len()
    }

    /// Whether every partition's acknowledgement proves at least two domains (a replicated topic).
    pub fn replicated(&self) -> bool {
        !self.domain_of.is_empty() && self.domain_of.values().all(|(_, copies)| *copies >= 2)
    }

    /// The domains for want of which *accepted* is withheld (R14), when fewer than two are up and no acknowledgement
    /// proves two: the absent ones, or the only one there is.
    pub fn withheld(&self, now: Duration) -> Option<Vec<Arc<str>>> {
        if self.replicated() {
            return None;
        }
        let absent = |name: &Arc<str>| self.absence(name, now).is_some();
        if self.domains.keys().filter(|name| !absent(name)).count() >= 2 {
            return None;
        }
        let mut names: Vec<Arc<str>> = self.domains.keys().filter(|name| absent(name)).cloned().collect();
        if names.is_empty() {
            names = self.domains.keys().cloned().collect();
        }
        Some(names)
    }

    /// Whether all the topic's partitions are in one domain, and it is up: then nothing is away, and only partitions in
    /// another domain make *accepted* possible.
    pub fn only_one(&self, now: Duration) -> bool {
        self.domains.len() == 1 && self.domains.keys().all(|name| self.absence(name, now).is_none())
    }
}
