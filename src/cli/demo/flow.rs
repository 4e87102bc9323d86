//! The whole way, step by step: an environment, three nodes, everything submitted, one node stopped and started, and what
//! came out compared with what went in.
//!
//! Owns the order of the steps. Must not judge what came out, nor print the report.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use indicatif::ProgressBar;

use super::check::{Comparison, Expected, Sent};
use super::cluster::{Cluster, prepare};
use super::payloads::{Chosen, Hashing, Made, Payload};
use super::report::{Measured, NodeRow, Report, SegmentsRow, StageRow};
use crate::cli::say::Say;
use crate::cli::{CliError, Exit, topic};
use crate::client::reader::{From, ReadError, Subscription};
use crate::client::{Client, Handle, Transaction, WaitError};
use crate::config::environment::Plan;
use crate::core::id::{DestinationName, NodeName, Position};
use crate::core::split::header;
use crate::core::split::segment::Segment;
use crate::seams::Seams;
use crate::telemetry::recorder;
use crate::transport::admin::{self, Layout};
use crate::transport::adversary::{AdversaryOptions, Classifier, Deeds, Group, Rates};
use crate::transport::{AnyTransport, Record};

/// Files that are submitted side by side.
const SIDE_BY_SIDE: usize = 32;
/// How long a fate may take, for a run of little; large files add to it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long equal state may take once all is complete.
const SETTLE: Duration = Duration::from_secs(20);

/// What to run.
pub(super) struct Run<'a> {
    /// The environment.
    pub plan: Plan,
    /// Where it is written.
    pub folder: &'a Path,
    /// The files.
    pub chosen: Chosen,
    /// Length of the made file; none when 0.
    pub made: u64,
    /// Where faults and the made file come from.
    pub seed: u64,
    /// The machine.
    pub seams: Seams,
}

/// A submitted transaction.
struct Submitted {
    handle: Handle,
    sent: Sent,
}

/// Strikes often, and of each stripe's segments at most as many as parity makes up for.
fn adversary(seed: u64) -> AdversaryOptions {
    let rates = Rates {
        drop: 0.2,
        corrupt: 0.12,
        truncate: 0.05,
        duplicate: 0.03,
        replay: 0.02,
        delay: 0.03,
        reorder: 0.03,
        ..Rates::default()
    };
    let classifier: Classifier = Arc::new(|record: &Record| {
        let segment = Segment::parse(&record.value).ok()?;
        let header = segment.header();
        Some(Group { key: header::digest(&header.encode()).0.to_vec(), most: header.core.profile.m() })
    });
    AdversaryOptions { rates, classifier: Some(classifier), ..AdversaryOptions::harmless(seed) }
}

impl Run<'_> {
    /// Runs it. An error is what kept it from its end; what differs is in the report.
    pub(super) async fn go(&self, say: &Say) -> Result<Report, CliError> {
        let recorded = recorder::install().map_err(|error| CliError::new(Exit::Failed, error))?;
        let (plan, folder, seams) = (self.plan.clone(), self.folder.to_path_buf(), self.seams.clone());
        let preparing = tokio::task::spawn_blocking(move || prepare(&plan, &folder, &seams));
        let (written, transport) = preparing.await.map_err(|error| CliError::new(Exit::Failed, error))??;
        let destination = written.directory.destinations.keys().next().cloned();
        let destination = destination.ok_or_else(|| CliError::usage("an environment needs a destination"))?;
        say.stage(format!("environment {} in {}", self.plan.name, self.folder.display()));
        for plan in topic::plans(&written.directory, Layout::PinnedToEach, topic::OUTAGE, |_| true) {
            admin::init(&transport, &plan).await?;
            let partitions = transport.known(&plan.topic, Duration::from_secs(10), &self.seams).await.len();
            if partitions == 0 {
                return Err(CliError::failed(format!("topic {}: its partitions cannot be seen", plan.topic)));
            }
            say.stage(format!("topic {} with {partitions} partitions", plan.topic));
        }
        let transport = transport.behind_adversary(adversary(self.seed), &self.seams);
        let watched = transport.clone();
        let deeds = move || match &watched {
            AnyTransport::Adversary(adversary) => adversary.deeds(),
            _ => Deeds::default(),
        };
        let mut cluster = Cluster::start(written, transport, &self.seams).await?;
        let names: Vec<_> = cluster.written().nodes.keys().map(ToString::to_string).collect();
        say.stage(format!("nodes {} run and have a leader", names.join(", ")));
        let report = self.send_and_compare(&mut cluster, &destination, say, &deeds).await;
        let (stages, nodes, sent, restarted) = match report {
            Ok(found) => found,
            Err(error) => {
                cluster.shutdown().await;
                return Err(error);
            }
        };
        cluster.shutdown().await;
        let measured = Measured::read(&recorded.text());
        let mut differences = Vec::new();
        for (row, compared) in &nodes {
            differences.extend(compared.iter().map(|text| format!("node {}: {text}", row.node)));
            if row.different > compared.len() {
                differences.push(format!("node {}: and {} more", row.node, row.different - compared.len()));
            }
        }
        let nodes: Vec<_> = nodes.into_iter().map(|(row, _)| row).collect();
        if nodes.iter().any(|row| nodes.first().map(|first| &first.state_digest) != Some(&row.state_digest)) {
            differences.push("the nodes' state digests differ".to_owned());
        }
        Ok(Report {
            stages,
            segments: SegmentsRow::new(&deeds(), &measured),
            nodes,
            transactions: sent.len(),
            bytes: sent.values().map(|sent| sent.bytes).sum(),
            took: say.elapsed(),
            restarted,
            differences,
        })
    }

    async fn send_and_compare(
        &self,
        cluster: &mut Cluster,
        destination: &DestinationName,
        say: &Say,
        deeds: &impl Fn() -> Deeds,
    ) -> Result<(Vec<StageRow>, Vec<(NodeRow, Vec<String>)>, Expected, NodeName), CliError> {
        let all = self.chosen.bytes() + self.made;
        let client = cluster.client(self.chosen.files.len() + 1, all).await?;
        let patience = PATIENCE + Duration::from_secs(all >> 20);
        let (first, second) = self.chosen.files.split_at(self.chosen.files.len().div_ceil(2));
        say.stage(format!("sending {}: {} bytes", self.what(), all));
        let bar = say.bytes("submitting", all);
        let mut submitted = watched(cluster, self.submit(&client, destination, first, &bar)).await?;
        let handles: Vec<_> = submitted.iter().map(|submitted| submitted.handle.clone()).collect();
        let unseen = ProgressBar::hidden();
        let committed = self.reach(&handles, patience, &unseen, async |handle| handle.committed().await.map(drop));
        watched(cluster, committed).await?;
        let restarted = self.leader(cluster, destination).await?;
        bar.suspend(|| {
            say.stage(format!("committed: the first {}; stopping node {restarted}, which leads", first.len()))
        });
        cluster.stop_node(&restarted).await?;
        let rest = async {
            let mut rest = self.submit(&client, destination, second, &bar).await?;
            if self.made > 0 {
                let made = Made::new(self.seed, self.made);
                let name = format!("a made file of {} bytes", self.made);
                rest.push(self.submit_one(&client, destination, &name, Some(self.made), made, &bar).await?);
            }
            Ok(rest)
        };
        submitted.extend(watched(cluster, rest).await?);
        bar.finish_and_clear();
        say.stage(format!("submitted: all {} transactions are durable in the outbox", submitted.len()));

        let handles: Vec<_> = submitted.iter().map(|submitted| submitted.handle.clone()).collect();
        let bar = say.transactions("accepted", handles.len());
        watched(cluster, self.reach(&handles, patience, &bar, async |handle| handle.accepted().await)).await?;
        say.stage(format!("accepted: the brokers have all {}", handles.len()));
        let bar = say.transactions("committed", handles.len());
        let committed = self.reach(&handles, patience, &bar, async |handle| handle.committed().await.map(drop));
        watched(cluster, committed).await?;
        let faults = deeds();
        say.stage(format!(
            "committed: two of three nodes signed all {}, with {} segments lost and {} damaged on the way",
            handles.len(),
            faults.dropped,
            faults.corrupted + faults.truncated
        ));
        cluster.start_node(&restarted).await?;
        say.stage(format!("node {restarted} is started again and catches up"));
        let bar = say.transactions("complete", handles.len());
        let complete = self.reach(&handles, patience, &bar, async |handle| handle.complete().await.map(drop));
        watched(cluster, complete).await?;
        say.stage(format!("complete: three of three nodes signed that they hold all {}", handles.len()));
        cluster.ready().await?;

        let times: Vec<_> = handles.iter().map(Handle::times).collect();
        let with_position = |submitted: Submitted| {
            let position = submitted.handle.receipt().and_then(|receipt| receipt.position);
            (submitted.handle.ticket().transaction, Sent { position, ..submitted.sent })
        };
        let expected: Expected = submitted.into_iter().map(with_position).collect();
        client.close().await;
        let rows = self.compare(cluster, destination, &expected, say).await?;
        Ok((StageRow::of(&times), rows, expected, restarted))
    }

    fn what(&self) -> String {
        let count = self.chosen.files.len();
        let made = if self.made > 0 { " and a made one" } else { "" };
        let files = if count == 1 { "file" } else { "files" };
        format!("{count} {files}{made} ({})", self.chosen.how)
    }

    /// Submits files, many side by side.
    async fn submit(
        &self,
        client: &Client,
        destination: &DestinationName,
        files: &[Payload],
        bar: &ProgressBar,
    ) -> Result<Vec<Submitted>, CliError> {
        let submissions = files.iter().map(|file| async move {
            let opened = tokio::fs::File::open(&file.path).await;
            let opened = opened.map_err(|error| CliError::file(&file.path, &error))?;
            let metadata = opened.metadata().await.map_err(|error| CliError::file(&file.path, &error))?;
            let name = file.path.display().to_string();
            self.submit_one(client, destination, &name, Some(metadata.len()), opened, bar).await
        });
        futures_util::stream::iter(submissions).buffered(SIDE_BY_SIDE).try_collect().await
    }

    /// Submits one payload.
    async fn submit_one(
        &self,
        client: &Client,
        destination: &DestinationName,
        name: &str,
        length: Option<u64>,
        payload: impl tokio::io::AsyncRead + Unpin + Send,
        bar: &ProgressBar,
    ) -> Result<Submitted, CliError> {
        let mut payload = Hashing::new(payload, |bytes| bar.inc(bytes));
        let transaction = Transaction::new(Bytes::new()).header("name", name.to_owned());
        let submitted = client.submit_reader(destination.as_str(), transaction, &mut payload, length).await;
        let handle = submitted.map_err(|error| CliError::failed(format!("{name}: {error}")))?;
        let (bytes, hash) = payload.digest();
        Ok(Submitted { handle, sent: Sent { name: name.to_owned(), bytes, hash, position: None } })
    }

    /// Waits until all have reached a stage.
    async fn reach(
        &self,
        handles: &[Handle],
        patience: Duration,
        bar: &ProgressBar,
        stage: impl AsyncFn(&Handle) -> Result<(), WaitError>,
    ) -> Result<(), CliError> {
        let stage = &stage;
        let mut waits: FuturesUnordered<_> =
            handles.iter().map(|handle| async move { (handle, stage(handle).await) }).collect();
        let all = async {
            while let Some((handle, reached)) = waits.next().await {
                let id = handle.ticket().transaction;
                reached.map_err(|error| {
                    let exit = if error.retryable() { Exit::Unknown } else { Exit::Rejected };
                    CliError::with(exit, format!("transaction {id}: {error}"))
                })?;
                bar.inc(1);
            }
            Ok(())
        };
        let reached = tokio::select! {
            reached = all => Some(reached),
            () = self.seams.clock.sleep(patience) => None,
        };
        bar.finish_and_clear();
        reached.unwrap_or_else(|| {
            let left = waits.len();
            let said = format!("{left} of {} transactions have not come further in {patience:?}", handles.len());
            Err(CliError::with(Exit::Unknown, said))
        })
    }

    /// The node that leads now; waits through an election.
    async fn leader(&self, cluster: &Cluster, destination: &DestinationName) -> Result<NodeName, CliError> {
        let failed = |error: ReadError| CliError::new(Exit::Failed, error);
        let began = self.seams.clock.monotonic();
        loop {
            for node in cluster.written().nodes.keys() {
                let status = cluster.reader(node)?.node_status(node).await.map_err(failed)?;
                let group = status.groups.into_iter().find(|group| group.destination == destination.as_str());
                if let Some(leader) = group.and_then(|group| group.leader) {
                    return NodeName::new(&leader).map_err(|error| CliError::new(Exit::Failed, error));
                }
            }
            if self.seams.clock.monotonic().saturating_sub(began) > SETTLE {
                return Err(CliError::failed("no node leads"));
            }
            self.seams.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads everything back from every node, and compares.
    async fn compare(
        &self,
        cluster: &Cluster,
        destination: &DestinationName,
        expected: &Expected,
        say: &Say,
    ) -> Result<Vec<(NodeRow, Vec<String>)>, CliError> {
        let names: Vec<_> = cluster.written().nodes.keys().cloned().collect();
        let failed = |error: ReadError| CliError::new(Exit::Failed, error);
        let total = expected.values().map(|sent| sent.bytes).sum::<u64>() * names.len() as u64;
        let bar = say.bytes("reading back", total);
        let read = names.iter().map(|node| {
            let bar = &bar;
            async move {
                let all = Subscription::new(From::Start).until_end();
                let mut feed = cluster.reader(node)?.subscribe(destination, all).await.map_err(failed)?;
                let mut comparison = Comparison::new(expected);
                while let Some(event) = feed.next().await.map_err(failed)? {
                    if let crate::client::reader::Event::Data(data) = &event {
                        bar.inc(data.len() as u64);
                    }
                    comparison.take(event);
                }
                Ok::<_, CliError>(comparison.finish())
            }
        });
        let compared = futures_util::future::try_join_all(read).await;
        bar.finish_and_clear();
        let compared = compared?;
        say.stage("every node was asked for every byte");
        let states = self.states(cluster, destination, &names).await?;
        let rows = names.into_iter().zip(states).zip(compared).map(|((node, (position, state)), compared)| {
            let row = NodeRow::new(node, position, state, &compared);
            (row, compared.differences)
        });
        Ok(rows.collect())
    }

    /// Where each node is and its state digest, all at the same log index.
    async fn states(
        &self,
        cluster: &Cluster,
        destination: &DestinationName,
        names: &[NodeName],
    ) -> Result<Vec<(Position, (u64, String))>, CliError> {
        let began = self.seams.clock.monotonic();
        loop {
            let asked = names.iter().map(|node| async move {
                let status = cluster.reader(node)?.node_status(node).await;
                let status = status.map_err(|error| CliError::new(Exit::Failed, error))?;
                let group = status.groups.into_iter().find(|group| group.destination == destination.as_str());
                let missing = || CliError::failed(format!("node {node} does not say how {destination} does"));
                let group = group.ok_or_else(missing)?;
                let position = group.held.map(Position::from).unwrap_or_default();
                let digest = data_encoding::HEXLOWER.encode(&group.state_digest);
                Ok::<_, CliError>((position, (group.state_index, digest)))
            });
            let states = futures_util::future::try_join_all(asked).await?;
            // Group time ticks on: digests are compared at one index only.
            let first = states.first().map(|(_, (index, _))| *index);
            if states.iter().all(|(_, (index, _))| Some(*index) == first) {
                return Ok(states);
            }
            if self.seams.clock.monotonic().saturating_sub(began) > SETTLE {
                let at: Vec<_> = states.iter().map(|(_, (index, _))| index.to_string()).collect();
                return Err(CliError::failed(format!(
                    "the nodes did not come to the same log index: {}",
                    at.join(", ")
                )));
            }
            self.seams.clock.sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs a step, unless a node fails first.
async fn watched<T>(cluster: &mut Cluster, step: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::select! {
        done = step => done,
        error = cluster.failure() => Err(error),
    }
}
