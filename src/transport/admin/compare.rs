//! What is wrong with a topic: every difference from its plan, each with the one thing to do about it.
//!
//! Owns the comparison and the texts of the mends. Must not ask the cluster: found things come in, differences go out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::cluster::{BrokerId, Cluster, FoundTopic};
use super::{Layout, Mismatch, TopicPlan};

/// Settings of which more than planned is right as well.
const AT_LEAST: [&str; 4] = ["max.message.bytes", "min.insync.replicas", "retention.bytes", "retention.ms"];

/// What to compare with, and how the mends name things.
pub(in crate::transport) struct Comparison<'a> {
    /// The topic as it should be.
    pub plan: &'a TopicPlan,
    /// The cluster's brokers.
    pub cluster: &'a Cluster,
    /// `host:port,..`, for commands that people type.
    pub bootstrap: &'a str,
}

/// Numbers as people list them: `1, 2 and 3`.
pub fn listed<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    match all.pop() {
        None => String::new(),
        Some(last) if all.is_empty() => last,
        Some(last) => format!("{} and {last}", all.join(", ")),
    }
}

fn broker_s(all: &BTreeSet<BrokerId>) -> String {
    format!("broker{} {}", if all.len() == 1 { "" } else { "s" }, listed(all))
}

fn wrong(what: &str, found: impl Into<String>, wanted: impl Into<String>, mend: impl Into<String>) -> Mismatch {
    Mismatch { what: what.to_owned(), found: found.into(), wanted: wanted.into(), mend: mend.into() }
}

impl Comparison<'_> {
    /// All that is wrong with this topic.
    pub fn differences(&self, topic: &FoundTopic) -> Vec<Mismatch> {
        let mut all = Vec::new();
        all.extend(self.leaders(topic));
        all.extend(self.replication(topic));
        all.extend(self.spread(topic));
        all.extend(self.racks(topic));
        all.extend(self.settings(topic));
        all
    }

    fn leaders(&self, topic: &FoundTopic) -> Option<Mismatch> {
        let answering: BTreeSet<BrokerId> = self.cluster.answering().into_iter().collect();
        let without = topic.partitions.iter().filter(|partition| match partition.leader {
            Some(leader) => !answering.contains(&leader),
            None => true,
        });
        let (mut numbers, mut holders) = (Vec::new(), BTreeSet::new());
        for partition in without {
            numbers.push(partition.number);
            holders.extend(partition.replicas.iter().copied().filter(|broker| !answering.contains(broker)));
        }
        if numbers.is_empty() {
            return None;
        }
        let partitions = if numbers.len() == 1 { "partition" } else { "partitions" };
        let found = format!("nobody serves {partitions} {}", listed(numbers));
        let mend = match holders.is_empty() {
            true => {
                "wait until the cluster has chosen a leader; if it does not, its controller's log says why".to_owned()
            }
            false => format!("start {}", broker_s(&holders)),
        };
        Some(wrong("leader", found, "one for each partition", mend))
    }

    fn replication(&self, topic: &FoundTopic) -> Option<Mismatch> {
        let wanted = self.plan.layout.factor();
        let right = |count: usize| match self.plan.layout {
            Layout::PinnedToEach => count == 1,
            Layout::Replicated { .. } => count >= wanted,
        };
        let mut by_count: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for partition in topic.partitions.iter().filter(|partition| !right(partition.replicas.len())) {
            by_count.entry(partition.replicas.len()).or_default().push(partition.number);
        }
        let most = *by_count.keys().next_back()?;
        let found = match (by_count.len(), by_count.values().map(Vec::len).sum::<usize>() == topic.partitions.len()) {
            (1, true) => most.to_string(),
            _ => listed(by_count.iter().map(|(count, numbers)| format!("{count} for partition {}", listed(numbers)))),
        };
        let mend = match self.plan.layout {
            Layout::PinnedToEach if topic.layout() != Layout::PinnedToEach => {
                format!(
                    "this is a replicated topic: say --replicated {}, or nothing, if it is meant to be",
                    topic.layout().factor()
                )
            }
            Layout::PinnedToEach => {
                "delete the topic and make it anew with `sealcast topic init`; or, where the cluster \
                dictates replication, give all partitions as many replicas with kafka-reassign-partitions"
                    .to_owned()
            }
            Layout::Replicated { .. } => {
                format!(
                    "give every partition {wanted} replicas with kafka-reassign-partitions, or delete the topic and \
                    make it anew with `sealcast topic init --replicated {wanted}`"
                )
            }
        };
        Some(wrong("replication", found, wanted.to_string(), mend))
    }

    /// Whether each broker is the first of a partition's replicas: where it belongs; who leads it now may differ after a
    /// failure.
    fn spread(&self, topic: &FoundTopic) -> Option<Mismatch> {
        let brokers = self.cluster.answering();
        let first: BTreeSet<BrokerId> =
            topic.partitions.iter().filter_map(|partition| partition.replicas.first().copied()).collect();
        let bare: BTreeSet<BrokerId> = brokers.iter().copied().filter(|broker| !first.contains(broker)).collect();
        if bare.is_empty() {
            return None;
        }
        let mend = if topic.partitions.len() < self.cluster.brokers.len() {
            "add the missing partitions: `sealcast topic init --grow`".to_owned()
        } else {
            format!("move partitions to {} with kafka-reassign-partitions", broker_s(&bare))
        };
        let found = format!("{}, none of them on {}", topic.partitions.len(), broker_s(&bare));
        Some(wrong("partitions", found, format!("one for each of brokers {}", listed(brokers)), mend))
    }

    /// Whether what is acknowledged by the replicas that must be in sync lies in two domains, whichever they are.
    fn racks(&self, topic: &FoundTopic) -> Option<Mismatch> {
        let Layout::Replicated { .. } = self.plan.layout else { return None };
        let in_sync: usize = topic.settings.get("min.insync.replicas")?.parse().ok()?;
        let together: Vec<i32> = topic
            .partitions
            .iter()
            .filter(|partition| partition.replicas.len() >= 2 && in_sync >= 2)
            .filter(|partition| {
                copies(partition.replicas.iter().map(|id| Some(self.cluster.domain_of(*id))), in_sync) < 2
            })
            .map(|partition| partition.number)
            .collect();
        if together.is_empty() {
            return None;
        }
        let found = format!("{in_sync} replicas of partition {} share a rack", listed(together));
        let wanted = format!("at most {} replicas of a partition in one rack", in_sync - 1);
        let mend = "spread the replicas over the racks with kafka-reassign-partitions; until then an acknowledgement \
            counts for one domain";
        Some(wrong("racks", found, wanted, mend))
    }

    fn settings(&self, topic: &FoundTopic) -> Vec<Mismatch> {
        let number = |text: &str| text.parse::<i64>().ok().map(|number| if number < 0 { i64::MAX } else { number });
        let pinned = matches!(self.plan.layout, Layout::PinnedToEach);
        let compare = |(name, wanted): (&'static str, String)| {
            let is = topic.settings.get(name).map_or("unknown", String::as_str);
            let enough = AT_LEAST.contains(&name) && !(pinned && name == "min.insync.replicas");
            let right = if enough { number(is).is_some() && number(is) >= number(&wanted) } else { is == wanted };
            let mend = format!(
                "kafka-configs --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {name}={wanted}",
                self.bootstrap, self.plan.topic
            );
            (!right).then(|| wrong(name, is, wanted, mend))
        };
        self.plan.settings().into_iter().filter_map(compare).collect()
    }
}

/// In how many domains a record lies for sure once a partition's leader acknowledged it under acks=all: 2 when as many
/// replicas as must be in sync cannot all be in one domain, else 1 (R14). `domains` has one for each replica; one that is
/// not known may be any.
pub(in crate::transport) fn copies(domains: impl Iterator<Item = Option<String>>, in_sync: usize) -> u8 {
    let mut counts: BTreeMap<Option<String>, usize> = BTreeMap::new();
    domains.for_each(|domain| *counts.entry(domain).or_default() += 1);
    let all: usize = counts.values().sum();
    let unknown = counts.remove(&None).unwrap_or(0);
    let together = unknown + counts.into_values().max().unwrap_or(0);
    if all >= 2 && in_sync >= 2 && together < in_sync { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cluster::{Broker, FoundPartition};
    use super::*;
    use crate::transport::contract::Topic;

    fn cluster(racks: [&str; 3]) -> Cluster {
        let broker = |(id, rack): (i32, &str)| Broker {
            id,
            rack: Some(rack.to_owned()).filter(|rack| !rack.is_empty()),
            answers: true,
        };
        Cluster { brokers: (1..).zip(racks).map(broker).collect() }
    }

    fn plan(layout: Layout) -> TopicPlan {
        TopicPlan { topic: Topic::named("t"), layout, retention: Duration::from_secs(3600) }
    }

    fn topic(plan: &TopicPlan, replicas: &[&[BrokerId]]) -> FoundTopic {
        let partition = |(number, replicas): (i32, &&[BrokerId])| FoundPartition {
            number,
            leader: replicas.first().copied(),
            replicas: replicas.to_vec(),
        };
        let settings = plan.settings().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        FoundTopic { partitions: (0..).zip(replicas).map(partition).collect(), settings }
    }

    fn differences(plan: &TopicPlan, cluster: &Cluster, topic: &FoundTopic) -> Vec<(String, String)> {
        let comparison = Comparison { plan, cluster, bootstrap: "b:9092" };
        comparison.differences(topic).into_iter().map(|wrong| (wrong.what, wrong.mend)).collect()
    }

    #[test]
    fn a_topic_as_planned_is_right() {
        let pinned = plan(Layout::PinnedToEach);
        assert_eq!(differences(&pinned, &cluster(["", "", ""]), &topic(&pinned, &[&[1], &[2], &[3]])), []);
        // Somebody else's: more partitions, more replicas, longer retention.
        let replicated = plan(Layout::Replicated { factor: 2 });
        let mut other = topic(&replicated, &[&[3, 1, 2], &[1, 2, 3], &[2, 3, 1], &[3, 2, 1], &[1, 3, 2]]);
        other.settings.insert("retention.ms".to_owned(), "-1".to_owned());
        assert_eq!(other.layout(), Layout::Replicated { factor: 3 });
        assert_eq!(differences(&replicated, &cluster(["", "", ""]), &other), []);
    }

    #[test]
    fn every_difference_has_one_mend_that_fits() {
        let pinned = plan(Layout::PinnedToEach);
        let mut brokers = cluster(["", "", ""]);
        let fewer = topic(&pinned, &[&[1], &[2]]);
        let grow = "add the missing partitions: `sealcast topic init --grow`";
        assert_eq!(differences(&pinned, &brokers, &fewer), [("partitions".to_owned(), grow.to_owned())]);
        let elsewhere = topic(&pinned, &[&[1], &[2], &[1]]);
        let moved = "move partitions to broker 3 with kafka-reassign-partitions";
        assert_eq!(differences(&pinned, &brokers, &elsewhere), [("partitions".to_owned(), moved.to_owned())]);
        // A broker that is listed and does not answer serves nothing, and is not asked to have more.
        brokers.brokers[2].answers = false;
        let right = topic(&pinned, &[&[1], &[2], &[3]]);
        assert_eq!(differences(&pinned, &brokers, &right), [("leader".to_owned(), "start broker 3".to_owned())]);
        let replicated = topic(&pinned, &[&[1, 2], &[2, 3], &[3, 1]]);
        let found = differences(&pinned, &cluster(["", "", ""]), &replicated);
        assert!(found[0].0 == "replication" && found[0].1.contains("--replicated 2"), "{found:?}");
    }

    #[test]
    fn r18_every_setting_is_compared() {
        let replicated = plan(Layout::Replicated { factor: 3 });
        let mut found = topic(&replicated, &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]]);
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("max.message.bytes", "65536"),
            ("message.timestamp.type", "CreateTime"),
            ("min.insync.replicas", "1"),
            ("retention.bytes", "1000000"),
            ("retention.ms", "60000"),
        ] {
            found.settings.insert(name.to_owned(), value.to_owned());
        }
        let all = differences(&replicated, &cluster(["", "", ""]), &found);
        let names: Vec<&str> = all.iter().map(|(what, _)| what.as_str()).collect();
        let wanted = ["cleanup.policy", "max.message.bytes", "message.timestamp.type"];
        assert_eq!(names, [&wanted[..], &["min.insync.replicas", "retention.bytes", "retention.ms"]].concat());
        assert!(all.iter().all(|(what, mend)| mend.starts_with("kafka-configs --bootstrap-server b:9092 --alter")
            && mend.contains(&format!("--entity-name t --add-config {what}="))));
    }

    #[test]
    fn replicas_in_one_rack_prove_one_domain() {
        let replicated = plan(Layout::Replicated { factor: 2 });
        let found = topic(&replicated, &[&[1, 2], &[2, 3], &[3, 1]]);
        let all = differences(&replicated, &cluster(["a", "a", "b"]), &found);
        assert_eq!(all.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["racks"]);
        assert_eq!(differences(&replicated, &cluster(["a", "b", "c"]), &found), []);
    }

    #[test]
    fn an_acknowledgement_proves_two_domains_where_those_in_sync_cannot_share_one() {
        let known = |all: &[Option<&str>], in_sync| copies(all.iter().map(|one| one.map(str::to_owned)), in_sync);
        assert_eq!(known(&[Some("1"), Some("2"), Some("3")], 2), 2);
        assert_eq!(known(&[Some("a"), Some("a"), Some("b")], 2), 1);
        assert_eq!(known(&[Some("a"), Some("a"), Some("b")], 3), 2);
        assert_eq!(known(&[Some("a"), Some("b")], 1), 1);
        assert_eq!(known(&[Some("a"), None], 2), 1);
        assert_eq!(known(&[Some("a"), None, Some("b")], 3), 2);
        assert_eq!(known(&[Some("a")], 2), 1);
    }
}
