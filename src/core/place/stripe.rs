//! One stripe: where its shards were sent, what came back, what to send next, and whether it is accepted.
//! Must not know how domains are judged (that is [`super::Domains`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Domains, Standing};

/// What to do: hand this shard to the transport for this partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The shard's index in its stripe.
    pub shard: u16,
    /// The partition's number.
    pub partition: i32,
}

/// Whether a stripe is accepted (R14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// For every domain, k distinct shards are acknowledged by the others that are not gone.
    Accepted,
    /// Not yet.
    Pending,
    /// It cannot be, for want of these domains. Committed stays possible.
    Withheld(Vec<Arc<str>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    partition: i32,
    domain: Arc<str>,
    copies: u8,
    acknowledged: bool,
}

/// The placement of one stripe's n shards, of which k suffice.
#[derive(Debug, Clone)]
pub struct Placement {
    k: usize,
    /// Spreads the first shard of successive stripes over all domains and partitions.
    rotation: usize,
    shards: Vec<Vec<Sent>>,
    started: bool,
}

impl Placement {
    /// A stripe of `n` shards, of which any `k` rebuild it (1 <= k <= n). `rotation` differs from stripe to stripe, so that all
    /// domains carry the same.
    pub fn new(k: usize, n: usize, rotation: usize) -> Self {
        Self { k, rotation, shards: vec![Vec::new(); n], started: false }
    }

    /// What to send now: at first every shard, data before parity in every domain's queue; later what failures, late and
    /// absent domains make necessary. Calling it again without news gives nothing.
    pub fn plan(&mut self, domains: &Domains, now: Duration) -> Vec<Place> {
        let standings: BTreeMap<Arc<str>, Standing> = domains.all(now).into_iter().collect();
        let mut usable: Vec<Arc<str>> = with(&standings, |standing| standing == Standing::Present);
        if usable.len() < 2 {
            usable = with(&standings, |standing| standing <= Standing::Late);
        }
        if usable.is_empty() {
            return Vec::new();
        }
        let mut places = Vec::new();
        if !self.started {
            self.started = true;
            let all: Vec<Arc<str>> = standings.keys().cloned().collect();
            for shard in 0..self.shards.len() {
                let nominal = all.get((self.rotation + shard) % all.len());
                // A late domain still gets its own: so it is noticed when it is fast again.
                if let Some(name) = nominal.filter(|name| standings.get(*name) <= Some(&Standing::Late)) {
                    self.send(shard, &name.clone(), domains, &mut places);
                }
            }
        }
        // A shard that is nowhere, nor on its way to a domain that is up, goes somewhere.
        for shard in 0..self.shards.len() {
            let somewhere = self.shards.get(shard).is_some_and(|sent| {
                sent.iter().any(|sent| match standings.get(&sent.domain) {
                    Some(Standing::Present | Standing::Late) => true,
                    Some(Standing::Absent) => sent.acknowledged,
                    Some(Standing::Gone) | None => false,
                })
            });
            if !somewhere && let Some(name) = self.least_loaded(&usable, shard, None) {
                self.send(shard, &name, domains, &mut places);
            }
        }
        // What R14 needs: for each domain, k distinct shards in the others.
        for lost in standings.keys() {
            self.survive(lost, &usable, &standings, domains, &mut places);
        }
        places
    }

    /// Adds copies until the loss of `lost` would leave k distinct shards that are acknowledged, or on their way to usable
    /// domains.
    fn survive(
        &mut self,
        lost: &Arc<str>,
        usable: &[Arc<str>],
        standings: &BTreeMap<Arc<str>, Standing>,
        domains: &Domains,
        places: &mut Vec<Place>,
    ) {
        let counts = |sent: &Sent| {
            let known = standings.get(&sent.domain).is_some_and(|standing| *standing < Standing::Gone);
            known && (sent.acknowledged || usable.contains(&sent.domain))
        };
        let survives = |sent: &Sent| counts(sent) && (sent.domain != *lost || sent.copies >= 2);
        let mut left = self.shards.iter().filter(|sent| sent.iter().any(survives)).count();
        // Those that count nowhere first, then those that were sent most often (to a late domain, say), then data before parity.
        let mut candidates: Vec<(bool, usize, usize)> = self
            .shards
            .iter()
            .enumerate()
            .filter(|(_, sent)| !sent.iter().any(survives))
            .map(|(shard, sent)| (sent.iter().any(counts), usize::MAX - sent.len(), shard))
            .collect();
        candidates.sort_unstable();
        for (_, _, shard) in candidates {
            if left >= self.k {
                break;
            }
            let Some(name) = self.least_loaded(usable, shard, Some(lost)) else { continue };
            if self.send(shard, &name, domains, places) {
                left += 1;
            }
        }
    }

    /// The usable domain with the fewest shards of this stripe, other than `except`, that does not have this one.
    fn least_loaded(&self, usable: &[Arc<str>], shard: usize, except: Option<&Arc<str>>) -> Option<Arc<str>> {
        let load = |name: &Arc<str>| self.shards.iter().flatten().filter(|sent| sent.domain == *name).count();
        let here = self.shards.get(shard)?;
        let has = |name: &Arc<str>| here.iter().any(|sent| sent.domain == *name);
        usable
            .iter()
            .filter(|name| Some(*name) != except && !has(name))
            .min_by_key(|name| (load(name), (*name).clone()))
            .cloned()
    }

    fn send(&mut self, shard: usize, domain: &Arc<str>, domains: &Domains, places: &mut Vec<Place>) -> bool {
        let partitions = domains.partitions(domain);
        let load = self.shards.iter().flatten().filter(|sent| sent.domain == *domain).count();
        let Some(&(partition, copies)) = partitions.get((self.rotation + load) % partitions.len().max(1)) else {
            return false;
        };
        let Some(sent) = self.shards.get_mut(shard) else { return false };
        sent.push(Sent { partition, domain: domain.clone(), copies, acknowledged: false });
        places.push(Place { shard: shard as u16, partition });
        true
    }

    /// The transport acknowledged this shard in this partition.
    pub fn acknowledged(&mut self, place: Place) {
        for sent in self.shards.get_mut(usize::from(place.shard)).into_iter().flatten() {
            if sent.partition == place.partition {
                sent.acknowledged = true;
            }
        }
    }

    /// The transport gave this shard up in this partition, or it was never handed over: the next plan sends it elsewhere.
    pub fn failed(&mut self, place: Place) {
        if let Some(sent) = self.shards.get_mut(usize::from(place.shard)) {
            sent.retain(|sent| sent.partition != place.partition || sent.acknowledged);
        }
    }

    /// Forgets where everything went, so that the next plan sends the whole stripe again: somebody signed that it is missing.
    pub fn start_over(&mut self) {
        self.started = false;
        self.rotation += 1;
        self.shards.iter_mut().for_each(Vec::clear);
    }

    /// Whether for every domain k distinct shards are acknowledged by the others, of those that are counted on: what a
    /// domain acknowledged that is gone since is no help until it is back. An acknowledgement of a partition with two
    /// or more copies survives any one domain.
    pub fn accepted(&self, domains: &Domains, now: Duration) -> bool {
        let gone: BTreeSet<Arc<str>> = self
            .shards
            .iter()
            .flatten()
            .map(|sent| &sent.domain)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|name| domains.absence(name, now) == Some(Standing::Gone))
            .cloned()
            .collect();
        let counts = |sent: &Sent| sent.acknowledged && !gone.contains(&sent.domain);
        let holders: BTreeSet<&Arc<str>> =
            self.shards.iter().flatten().filter(|sent| counts(sent)).map(|sent| &sent.domain).collect();
        !holders.is_empty()
            && holders.iter().all(|lost| {
                let survives = |sent: &Sent| counts(sent) && (sent.domain != **lost || sent.copies >= 2);
                self.shards.iter().filter(|sent| sent.iter().any(survives)).count() >= self.k
            })
    }

    /// Whether it is accepted, and if it cannot be, for want of which domains.
    pub fn acceptance(&self, domains: &Domains, now: Duration) -> Acceptance {
        if self.accepted(domains, now) {
            return Acceptance::Accepted;
        }
        match domains.withheld(now) {
            Some(names) => Acceptance::Withheld(names),
            None => Acceptance::Pending,
        }
    }

    /// Whether every shard that was sent has been acknowledged or has failed.
    pub fn settled(&self) -> bool {
        self.started && self.shards.iter().flatten().all(|sent| sent.acknowledged)
    }
}

fn with(standings: &BTreeMap<Arc<str>, Standing>, which: impl Fn(Standing) -> bool) -> Vec<Arc<str>> {
    standings.iter().filter(|(_, standing)| which(**standing)).map(|(name, _)| name.clone()).collect()
}
