//! Starting one destination: its store, its group and its parts, connected.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::options::NodeOptions;
use super::watching::Ended;
use crate::core::decide::View;
use crate::core::directory::Directory;
use crate::core::id::DestinationName;
use crate::keys::KeyRing;
use crate::node::alarms::Alarms;
use crate::node::answer::{Answerer, QUERIES};
use crate::node::group::{GroupContext, Lag, NoticeSender, Served};
use crate::node::hold::{Holder, News};
use crate::node::propose::Desk;
use crate::node::receipts::Publisher;
use crate::node::report::Reporter;
use crate::node::{NodeError, collect, lookup, pulse};
use crate::raft::{Group, GroupOptions, RpcPeers};
use crate::rpc::client::Dialer;
use crate::seams::Seams;
use crate::store::group::{GroupStore, StoreOptions};
use crate::telemetry::Meter;
use crate::transport::AnyTransport;

/// Parcels that were staged or ended and that wait for whoever is told.
const NEWS: usize = 1024;
/// How often the end of the log is asked for until the log is replayed.
const REPLAY_AGAIN: Duration = Duration::from_millis(100);

/// What starting a destination needs of the node, and where its parts are put.
pub(super) struct Starting<'a> {
    pub options: &'a NodeOptions,
    pub seams: &'a Seams,
    pub transport: &'a Arc<AnyTransport>,
    pub newest: &'a watch::Sender<Arc<Directory>>,
    pub dialer: &'a Dialer,
    pub meter: &'a Meter,
    pub openings: Arc<Semaphore>,
    pub collecting: &'a CancellationToken,
    pub closed: &'a CancellationToken,
    pub running: &'a mut JoinSet<Ended>,
    pub publishing: &'a mut JoinSet<()>,
}

impl Starting<'_> {
    /// Starts one destination.
    pub async fn destination(&mut self, name: &DestinationName, ring: &Arc<KeyRing>) -> Result<Served, NodeError> {
        let options = self.options;
        let directory = options.directory.clone();
        let wrong = |problem: String| NodeError::Destination { destination: name.clone(), problem };
        let entry =
            directory.destinations.get(name).ok_or_else(|| wrong("the directory has no such one".to_owned()))?;
        if !entry.has_node(&options.name) {
            return Err(wrong(format!("the directory does not list node {} for it", options.name)));
        }
        ring.check_covers(entry).map_err(|error| wrong(error.to_string()))?;
        let failed = |cause| NodeError::Store { destination: name.clone(), cause };
        let store_options = StoreOptions { folder: options.data.join(name.as_str()), destination: name.clone() };
        let seams = self.seams.clone();
        let store = self.seams.work.run(move || GroupStore::open(&store_options, &seams)).await?.map_err(failed)?;
        let (in_force, group_time) = {
            let snapshot = store.snapshot().map_err(failed)?;
            (View::directory(&snapshot).cloned(), View::group_time(&snapshot))
        };
        if let Some(in_force) = &in_force {
            self.newest.send_if_modified(|newest| {
                let newer = in_force.version > newest.version;
                if newer {
                    *newest = in_force.clone();
                }
                newer
            });
        }
        let (in_force, in_force_seen) = watch::channel(in_force.unwrap_or(directory.clone()));
        let (group_time, group_time_seen) = watch::channel(group_time);
        let (notices, notices_out) = NoticeSender::new();
        let (repeats, repeated) = mpsc::unbounded_channel();
        let (queries, asked) = mpsc::channel(QUERIES);
        let meter = self.meter.destination(name);
        pulse::measure_commits(&store, &meter);
        let context = Arc::new(GroupContext {
            node: options.name.clone(),
            destination: name.clone(),
            tag: entry.tag,
            environment: directory.name.clone(),
            seams: self.seams.clone(),
            store: store.clone(),
            transport: self.transport.clone(),
            keys: options.keys.clone(),
            ring: ring.clone(),
            in_force: in_force_seen,
            group_time: group_time_seen,
            lag: watch::Sender::new(Lag::default()),
            alarms: Alarms::kept_in(&store, self.seams.clock.clone(), meter.clone()).map_err(failed)?,
            meter: meter.clone(),
            notices: notices.clone(),
            queries,
            caps: options.caps.shared_by(options.rings.len()),
            openings: self.openings.clone(),
            repeats,
            stop: self.collecting.clone(),
        });
        let consensus = |cause| NodeError::Consensus { destination: name.clone(), cause };
        let group_options = GroupOptions::new(options.name.clone(), entry.tag, entry.nodes.clone());
        let peers = Arc::new(RpcPeers::new(self.dialer.clone()));
        let opened = Group::open(group_options, store.clone(), peers, self.seams.clone()).await;
        let (group, applied) = opened.map_err(consensus)?;

        let (signer, publisher) = Publisher::new(context.clone(), notices.channel(), notices_out);
        let desk = Desk::new(context.clone(), self.newest.subscribe(), options.operator.clone());
        let (tell_ended, ended) = mpsc::channel(NEWS);
        let (tell_staged, staged) = mpsc::channel(NEWS);
        let news = News { in_force, newest: self.newest.clone(), group_time, ended: tell_ended };
        let holder = Holder::new(
            context.clone(),
            desk.clone(),
            group.clone(),
            self.dialer.clone(),
            signer.clone(),
            news,
            self.closed.clone(),
        )?;
        let reporter =
            Reporter::new(context.clone(), desk.clone(), group.clone(), self.dialer.clone(), self.newest.subscribe());
        let answerer = Answerer::new(context.clone(), signer);
        let (tell_replayed, replayed) = watch::channel(false);
        self.publishing.spawn(publisher.run());
        self.part(name, "answering", answerer.run(asked));
        self.part(name, "holding", holder.run(applied, repeated));
        self.part(name, "collecting", collect::run(context.clone(), ended, tell_staged));
        self.part(name, "reporting", reporter.run(staged));
        self.part(name, "leading", desk.clone().run(group.clone()));
        let dialer = self.dialer.clone();
        tokio::spawn(replay(context.clone(), group.clone(), dialer.clone(), tell_replayed));
        Ok(Served { context, group, dialer, desk, replayed })
    }

    /// Runs a part of a destination, under the name by which its end is told.
    fn part(
        &mut self,
        destination: &DestinationName,
        part: &'static str,
        work: impl Future<Output = Result<(), NodeError>> + Send + 'static,
    ) {
        let destination = destination.clone();
        self.running.spawn(async move { (destination, part, work.await) });
    }
}

/// Says when everything is applied that was committed before this start.
async fn replay(context: Arc<GroupContext>, group: Group, dialer: Dialer, replayed: watch::Sender<bool>) {
    let mut progress = context.store.progress();
    loop {
        if let Ok(index) = lookup::read_index(&context, &group, &dialer).await
            && progress.wait_for(|progress| progress.applied >= index).await.is_ok()
        {
            replayed.send_replace(true);
            return;
        }
        tokio::select! {
            () = context.seams.clock.sleep(REPLAY_AGAIN) => {}
            () = context.stop.cancelled() => return,
        }
    }
}
