//! Starting one destination: its store, its group and its parts, connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::options::NodeOptions;
use super::watching::Ended;
use crate::core::decide::View;
use crate::core::id::DestinationName;
use crate::keys::KeyRing;
use crate::node::alarms::Alarms;
use crate::node::answer::{Answerer, Questions};
use crate::node::group::{GroupContext, Lag, NoticeSender, Served};
use crate::node::hold::{Holder, News};
use crate::node::newest::Newest;
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
    pub newest: &'a Newest,
    pub dialer: &'a Dialer,
    pub meter: &'a Meter,
    pub openings: Arc<Semaphore>,
    pub collecting: &'a CancellationToken,
    pub closed: &'a CancellationToken,
    pub running: &'a mut JoinSet<Ended>,
    pub publishing: &'a mut JoinSet<()>,
}

impl Starting<'_> {
    /// Starts all destinations. None begins before every store was opened and agrees with the configuration: what begins
    /// hands the directory on. After an error those in `served` run; everything else was ended.
    pub async fn all(&mut self, served: &mut BTreeMap<DestinationName, Arc<Served>>) -> Result<(), NodeError> {
        let mut stores = BTreeMap::new();
        let outcome = self.begin(served, &mut stores).await;
        for (_, (store, group)) in stores.into_iter().filter(|(name, _)| !served.contains_key(name)) {
            abandon(self.seams, group.as_ref(), &store).await;
        }
        outcome
    }

    async fn begin(
        &mut self,
        served: &mut BTreeMap<DestinationName, Arc<Served>>,
        stores: &mut BTreeMap<DestinationName, (GroupStore, Option<Group>)>,
    ) -> Result<(), NodeError> {
        let options = self.options;
        for (name, ring) in &options.rings {
            self.check(name, ring)?;
            let failed = |cause| NodeError::Store { destination: name.clone(), cause };
            let folder = options.data.join(name.as_str());
            let (store_options, seams) = (StoreOptions { folder, destination: name.clone() }, self.seams.clone());
            let store = self.seams.work.run(move || GroupStore::open(&store_options, &seams)).await?.map_err(failed)?;
            stores.insert(name.clone(), (store.clone(), None));
            self.agrees(name, &store)?;
        }
        // Of all groups, before any of them begins: it hands the newest on.
        let mut in_force = Vec::new();
        for (name, (store, _)) in stores.iter() {
            let snapshot = store.snapshot().map_err(|cause| NodeError::Store { destination: name.clone(), cause })?;
            // A group that has none yet is founded under this node's own, or under another one's of the same voters.
            let directory = View::directory(&snapshot).unwrap_or(&options.directory);
            in_force.push((name.clone(), directory.clone()));
        }
        self.newest.in_force(in_force);
        for (name, ring) in &options.rings {
            let Some((store, group)) = stores.get_mut(name) else { continue };
            let one = self.destination(name, ring, store, group).await?;
            served.insert(name.clone(), Arc::new(one));
        }
        Ok(())
    }

    /// Whether the directory has this node serve the destination. Errors: [`NodeError::Destination`].
    fn check(&self, name: &DestinationName, ring: &KeyRing) -> Result<(), NodeError> {
        let wrong = |problem: String| NodeError::Destination { destination: name.clone(), problem };
        let entry = self.options.directory.destinations.get(name);
        let entry = entry.ok_or_else(|| wrong("the directory has no such one".to_owned()))?;
        if !entry.has_node(&self.options.name) {
            return Err(wrong(format!("the directory does not list node {} for it", self.options.name)));
        }
        ring.check_covers(entry).map_err(|error| wrong(error.to_string()))
    }

    /// Whether operator and directory are such as the group's log can go on with. Errors: [`NodeError::Destination`], and
    /// the store's.
    fn agrees(&self, name: &DestinationName, store: &GroupStore) -> Result<(), NodeError> {
        let wrong = |problem: String| NodeError::Destination { destination: name.clone(), problem };
        let snapshot = store.snapshot().map_err(|cause| NodeError::Store { destination: name.clone(), cause })?;
        let operator = self.options.operator.bytes();
        if let Some(pinned) = View::operator(&snapshot).filter(|pinned| *pinned != operator) {
            return Err(wrong(format!(
                "the configuration names {operator} as operator, the group's log pins {pinned} for good: give the \
                 configuration that key, and sign directories with it"
            )));
        }
        let directory = &self.options.directory;
        if let Some(in_force) = View::directory(&snapshot).filter(|in_force| directory.version > in_force.version) {
            let follows = directory.check_successor_of(in_force);
            follows.and_then(|()| directory.check_keeps(in_force, name)).map_err(|error| {
                wrong(format!("the directory cannot follow version {} in force: {error}", in_force.version))
            })?;
        }
        Ok(())
    }

    /// Starts one destination over its store; `opened` gets its group as soon as that runs.
    async fn destination(
        &mut self,
        name: &DestinationName,
        ring: &Arc<KeyRing>,
        store: &GroupStore,
        opened: &mut Option<Group>,
    ) -> Result<Served, NodeError> {
        let options = self.options;
        let directory = options.directory.clone();
        let wrong = |problem: String| NodeError::Destination { destination: name.clone(), problem };
        let entry =
            directory.destinations.get(name).ok_or_else(|| wrong("the directory has no such one".to_owned()))?;
        let failed = |cause| NodeError::Store { destination: name.clone(), cause };
        let (in_force, group_time) = {
            let snapshot = store.snapshot().map_err(failed)?;
            (View::directory(&snapshot).cloned(), View::group_time(&snapshot))
        };
        let (in_force, in_force_seen) = watch::channel(in_force.unwrap_or(directory.clone()));
        let (group_time, group_time_seen) = watch::channel(group_time);
        let (notices, notices_out) = NoticeSender::new();
        let (repeats, repeated) = mpsc::unbounded_channel();
        let meter = self.meter.destination(name);
        pulse::measure_commits(store, &meter);
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
            alarms: Alarms::kept_in(store, self.seams.clock.clone(), meter.clone()).map_err(failed)?,
            meter: meter.clone(),
            notices,
            queries: Questions::default(),
            caps: options.caps.shared_by(options.rings.len()),
            undecided_per_sender: options.undecided_per_sender,
            on_the_way: Arc::default(),
            openings: self.openings.clone(),
            repeats,
            stop: self.collecting.clone(),
        });
        let consensus = |cause| NodeError::Consensus { destination: name.clone(), cause };
        let group_options = GroupOptions::new(options.name.clone(), entry.tag, entry.nodes.clone());
        let peers = Arc::new(RpcPeers::new(self.dialer.clone()));
        let started = Group::open(group_options, store.clone(), peers, self.seams.clone()).await;
        let (group, applied) = started.map_err(consensus)?;
        *opened = Some(group.clone());

        let (signer, publisher) = Publisher::new(context.clone(), notices_out).map_err(failed)?;
        let desk = Desk::new(context.clone(), self.newest.watch(), options.operator.clone());
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
            Reporter::new(context.clone(), desk.clone(), group.clone(), self.dialer.clone(), self.newest.watch());
        let answerer = Answerer::new(context.clone(), signer);
        let (tell_replayed, replayed) = watch::channel(false);
        // It outlives the other parts, to say what they still sign; that it lives is watched like theirs.
        let (publishing, gone) = oneshot::channel::<()>();
        self.publishing.spawn(async move {
            publisher.run().await;
            drop(publishing);
        });
        let stop = self.collecting.clone();
        self.part(name, "publishing", async move {
            tokio::select! {
                _ = gone => {}
                () = stop.cancelled() => {}
            }
            Ok(())
        });
        self.part(name, "answering", answerer.run());
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

/// Ends what was begun of a destination that cannot be started.
pub(super) async fn abandon(seams: &Seams, group: Option<&Group>, store: &GroupStore) {
    if let Some(group) = group {
        group.shutdown().await;
    }
    let store = store.clone();
    if seams.work.run(move || store.close()).await.is_err() {
        tracing::warn!("a store was not closed: the runtime ends");
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
