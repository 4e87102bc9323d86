//! The Reader service: what applications read, by the directory's leave, and never past the held prefix (R23).
//!
//! Must not open what is sealed (that is `read`), nor change anything.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::alarms::Alarms;
use super::feed::Filter;
use super::group::{AllServed, Served};
use super::lookup::{self, Asked, Fresh};
use super::peer::unavailable;
use super::read::{Give, Openings, Wanted, message};
use super::status;
use crate::core::decide::Row;
use crate::core::id::{DestinationName, KeyTag, NodeName, Position, Time};
use crate::core::limits;
use crate::core::seal::keys::key_tag;
use crate::rpc::access::{Gate, PeerIdentity};
use crate::rpc::convert;
use crate::rpc::proto::read_response::Part;
use crate::rpc::proto::{self, Answer, reader_server::Reader};
use crate::seams::Clock;
use crate::telemetry::names;

/// Messages that wait for a slow reader.
const AHEAD: usize = 2;
/// Rows that are looked at together.
const PAGE: usize = 256;
/// A subscription says how far it is at least this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Statuses in one answer.
const STATUSES: usize = 100;

type ReadStream = Pin<Box<dyn Stream<Item = Result<proto::ReadResponse, Status>> + Send>>;

/// Answers readers.
#[derive(Clone)]
pub struct ReaderService(Arc<Inner>);

struct Inner {
    node: NodeName,
    gate: Gate,
    served: AllServed,
    openings: Openings,
    alarms: Alarms,
    clock: Arc<dyn Clock>,
    started: Duration,
}

impl ReaderService {
    /// Answers for these destinations; `alarms` are those of the node as a whole.
    pub fn new(node: NodeName, gate: Gate, served: AllServed, alarms: Alarms, clock: Arc<dyn Clock>) -> Self {
        let started = clock.monotonic();
        let openings = Openings::default();
        Self(Arc::new(Inner { node, gate, served, openings, alarms, clock, started }))
    }

    /// The destination, for a caller that may read it. Errors: PERMISSION_DENIED, UNAVAILABLE when it is not served here.
    fn readable<T>(&self, request: &Request<T>, name: &str) -> Result<(PeerIdentity, Arc<Served>), Status> {
        let name = convert::destination(name, "destination")?;
        let who = self.0.gate.reader_of(request, &name)?;
        match self.0.served.get(&name) {
            Some(served) => Ok((who, served.clone())),
            None => Err(Status::unavailable(format!("node {} does not serve {name}: ask another", self.0.node))),
        }
    }

    /// All destinations that the caller may read and this node serves, or the one that it names.
    fn all_readable<T>(
        &self,
        request: &Request<T>,
        only: Option<&str>,
    ) -> Result<(PeerIdentity, Vec<Arc<Served>>), Status> {
        if let Some(name) = only {
            return self.readable(request, name).map(|(who, served)| (who, vec![served]));
        }
        let who = self.0.gate.identity(request)?;
        let names = self.0.gate.readable(&who);
        Ok((who, names.iter().filter_map(|name| self.0.served.get(name).cloned()).collect()))
    }

    fn may_still(&self, who: &PeerIdentity, destination: &DestinationName) -> Result<(), Status> {
        match self.0.gate.may_read(who, destination) {
            true => Ok(()),
            false => Err(Status::permission_denied(format!("{who} may not read {destination} any more"))),
        }
    }

    /// Gives a reader one committed row, which is held.
    async fn give(
        &self,
        who: &PeerIdentity,
        served: &Served,
        row: Row,
        wanted: Wanted,
        give: &Give,
        method: &'static str,
    ) -> Result<(), Status> {
        let found = served.context.store.snapshot().and_then(|snapshot| snapshot.body(&row.digest, row.index));
        let Some(body) = found.map_err(unavailable)? else {
            return Err(Status::data_loss(format!(
                "the body of {} is gone on this node; ask another",
                row.transaction
            )));
        };
        self.0.openings.open(who, &served.context, (row, body), wanted, give, method).await
    }

    async fn subscription(
        &self,
        who: PeerIdentity,
        served: Arc<Served>,
        mut after: Position,
        (request, filter): (proto::SubscribeRequest, Arc<Filter>),
        give: &Give,
    ) -> Result<(), Status> {
        let destination = &served.context.destination;
        let wanted =
            Wanted { metadata_only: request.metadata_only, headers: filter.headers.clone(), ..Wanted::default() };
        let mut progress = served.context.store.progress();
        let stop = served.context.stop.clone();
        let clock = &self.0.clock;
        let say = async |through: Position, group_time: Time| {
            let part = proto::Progress { held: Some(through.into()), group_time_ms: group_time.0 };
            let sent = give.send(Ok(message(Part::Progress(part)))).await;
            sent.map_err(|_| Status::cancelled("the reader is gone")).map(|()| (clock.monotonic(), through))
        };
        let mut said = say(after, lookup::held(&served).1).await?;
        loop {
            let (held, group_time) = {
                let progress = progress.borrow_and_update();
                (progress.held, progress.group_time)
            };
            while after < held {
                // A page of many keys decodes many rows: no work for a thread that others' calls run on.
                let (context, filter) = (served.context.clone(), filter.clone());
                let page = served.context.seams.work.run(move || filter.page(&context.store.snapshot()?, after, held));
                let page = page.await.map_err(|_| going())?.map_err(unavailable)?;
                for row in page.rows {
                    self.may_still(&who, destination)?;
                    if stop.is_cancelled() {
                        return Err(going());
                    }
                    self.give(&who, &served, row, wanted.clone(), give, "Subscribe").await?;
                }
                after = page.through;
                if after < held && clock.monotonic() >= said.0 + PROGRESS_EVERY {
                    said = say(after, group_time).await?;
                }
            }
            if said.1 != after || clock.monotonic() >= said.0 + PROGRESS_EVERY {
                said = say(after, group_time).await?;
            }
            if !request.follow {
                return Ok(());
            }
            let mut directory = self.0.gate.watch();
            directory.mark_unchanged();
            tokio::select! {
                changed = progress.wait_for(|progress| progress.held > held) => {
                    changed.map_err(|_| Status::unavailable("this node is stopping"))?;
                }
                () = clock.sleep(PROGRESS_EVERY) => {}
                _ = directory.changed() => self.may_still(&who, destination)?,
                () = stop.cancelled() => return Err(going()),
                () = give.closed() => return Ok(()),
            }
        }
    }

    /// Where a subscription starts. Errors: FAILED_PRECONDITION for a cursor of another group.
    async fn cursor(&self, served: &Served, request: &proto::SubscribeRequest) -> Result<Position, Status> {
        use proto::subscribe_request::From;
        if let Some(group) = &request.group
            && convert::group(group, "SubscribeRequest.group")? != served.context.tag
        {
            return Err(Status::failed_precondition("this cursor belongs to another group's log"));
        }
        let snapshot = || served.context.store.snapshot().map_err(unavailable);
        let (held, _) = lookup::held(served);
        Ok(match request.from {
            None => Position::default(),
            Some(From::After(position)) => position.into(),
            Some(From::End(true)) => held,
            Some(From::End(false)) => Position::default(),
            Some(From::Last(0)) => held,
            Some(From::Last(count)) => match snapshot()?.first_of_last(held, count).map_err(unavailable)? {
                Some(first) => before(first.position),
                None => Position::default(),
            },
            Some(From::SinceMs(since)) => snapshot()?.before(Time(since)).map_err(unavailable)?.min(held),
        })
    }

    async fn found(
        &self,
        who: &PeerIdentity,
        all: &[Arc<Served>],
        request: &proto::GetRequest,
        give: &Give,
    ) -> Result<(), Status> {
        let fresh = Fresh::of(request.freshness)?;
        let transaction = convert::transaction(&request.transaction, "GetRequest.transaction")?;
        let sender = request.sender.as_deref().map(|name| convert::sender(name, "GetRequest.sender")).transpose()?;
        let mut rows: Vec<(Arc<Served>, Row)> = Vec::new();
        let (mut unfresh, mut replayed) = (None, true);
        for served in all {
            if let Err(status) = fresh.wait(served).await {
                unfresh = Some(status);
                continue;
            }
            // Asked before anything is looked up: what is replayed meanwhile was not looked at.
            replayed &= *served.replayed.borrow();
            let snapshot = served.context.store.snapshot().map_err(unavailable)?;
            let found = snapshot.rows_of(&transaction).map_err(unavailable)?.into_iter();
            let found = found.filter(|row| sender.as_ref().is_none_or(|sender| row.sender == *sender));
            rows.extend(found.map(|row| (served.clone(), row)));
        }
        // A fate other than committed never hides one that is.
        if rows.iter().any(|(_, row)| row.is_committed()) {
            rows.retain(|(_, row)| row.is_committed());
        }
        if rows.len() > 1 {
            let names: Vec<String> = rows
                .iter()
                .map(|(served, row)| format!("{} from {}", served.context.destination, row.sender))
                .collect();
            let text =
                format!("more than one transaction has this id: {}: name destination and sender", names.join(", "));
            return Err(Status::failed_precondition(text));
        }
        let Some((served, row)) = rows.pop() else {
            return match (unfresh, all.first()) {
                (Some(status), _) => miss(give, Answer::Unavailable, status.message(), None, None).await,
                (None, Some(first)) if replayed => {
                    let asked = Asked::Beginning(transaction.to_bytes().to_vec(), 32);
                    let mut known = Vec::new();
                    for served in all {
                        known.extend(lookup::statuses(served, &asked, 1)?);
                    }
                    let text =
                        if known.is_empty() { "no such transaction is known here" } else { "it has no fate yet" };
                    miss(give, Answer::NotFound, text, Some(lookup::held(first).0), known.pop()).await
                }
                (None, Some(_)) => miss(give, Answer::Unavailable, "the log is not replayed yet", None, None).await,
                (None, None) => {
                    miss(give, Answer::NotPermitted, "there is nothing here that you may read", None, None).await
                }
            };
        };
        if !row.is_committed() {
            let snapshot = served.context.store.snapshot().map_err(unavailable)?;
            let asked = Asked::Beginning(transaction.to_bytes().to_vec(), 32);
            let status = lookup::of_row(&served, &snapshot, &row, &asked).map_err(unavailable)?;
            let text = format!("it was {}: there is nothing to read", row.decision.fate());
            return miss(give, Answer::NotFound, &text, Some(lookup::held(&served).0), Some(status)).await;
        }
        if request.offset > row.payload_bytes {
            return Err(Status::out_of_range(format!("the payload has {} bytes", row.payload_bytes)));
        }
        if lookup::held(&served).0 < row.position {
            let held = tokio::select! {
                held = lookup::hold(&served, row.position) => held.is_ok(),
                () = self.0.clock.sleep(fresh.timeout) => false,
            };
            if !held {
                let text =
                    "it is committed, and this node does not hold everything up to it yet: try again or ask another";
                return miss(give, Answer::Unavailable, text, Some(lookup::held(&served).0), None).await;
            }
        }
        self.may_still(who, &served.context.destination)?;
        let wanted = Wanted { metadata_only: request.metadata_only, offset: request.offset, ..Wanted::default() };
        self.give(who, &served, row, wanted, give, "Get").await
    }

    async fn by_key(
        &self,
        who: &PeerIdentity,
        served: &Arc<Served>,
        request: &proto::GetByKeyRequest,
        give: &Give,
    ) -> Result<(), Status> {
        let fresh = Fresh::of(request.freshness)?;
        if !(1..=limits::KEY_BYTES).contains(&request.key.len()) {
            return Err(Status::invalid_argument("GetByKeyRequest.key has 1 to 256 bytes"));
        }
        if let Err(status) = fresh.wait(served).await {
            return miss(give, Answer::Unavailable, status.message(), None, None).await;
        }
        // Asked before anything is looked up: what is replayed meanwhile was not looked at.
        let replayed = *served.replayed.borrow();
        let tag: KeyTag = key_tag(served.context.ring.index_secret(), &request.key);
        let wanted = Wanted { metadata_only: request.metadata_only, ..Wanted::default() };
        let held = lookup::held(served).0;
        let snapshot = || served.context.store.snapshot().map_err(unavailable);
        let mut after: Position = request.after.map(Into::into).unwrap_or_default();
        let mut given = false;
        loop {
            let rows = match request.history {
                false => snapshot()?.latest_of_key(&tag, held).map_err(unavailable)?.into_iter().collect(),
                true => snapshot()?.rows_of_key(&tag, after, PAGE).map_err(unavailable)?,
            };
            let count = rows.len();
            for row in rows {
                if row.position > held {
                    return Ok(());
                }
                after = row.position;
                given = true;
                self.may_still(who, &served.context.destination)?;
                self.give(who, served, row, wanted.clone(), give, "GetByKey").await?;
            }
            if !request.history || count < PAGE {
                break;
            }
        }
        if given || request.after.is_some() {
            return Ok(());
        }
        let (answer, text) = match replayed {
            true => (Answer::NotFound, "nothing is committed under this key"),
            false => (Answer::Unavailable, "the log is not replayed yet"),
        };
        miss(give, answer, text, Some(held), None).await
    }
}

/// The only message of a read that gives nothing.
async fn miss(
    give: &Give,
    answer: Answer,
    text: &str,
    at: Option<Position>,
    status: Option<proto::TransactionStatus>,
) -> Result<(), Status> {
    let miss = proto::ReadMiss { answer: answer.into(), text: text.to_owned(), at: at.map(Into::into), status };
    // A reader that is gone needs no answer.
    let _ = give.send(Ok(message(Part::Miss(miss)))).await;
    Ok(())
}

fn going() -> Status {
    Status::unavailable("this node is stopping: go on at another")
}

/// Runs a read in a task of its own; an error ends its stream.
fn stream<F>(read: impl FnOnce(Give) -> F) -> Response<ReadStream>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (give, take) = mpsc::channel(AHEAD);
    let reading = read(give.clone());
    tokio::spawn(async move {
        if let Err(status) = reading.await {
            // A reader that is gone needs no error.
            let _ = give.send(Err(status)).await;
        }
    });
    Response::new(Box::pin(ReceiverStream::new(take)))
}

/// The cursor behind which `position` is the first.
fn before(position: Position) -> Position {
    match position.number.checked_sub(1) {
        Some(number) => Position { number, ..position },
        None => Position { index: position.index.saturating_sub(1), number: u32::MAX },
    }
}

#[tonic::async_trait]
impl Reader for ReaderService {
    type SubscribeStream = ReadStream;
    type GetStream = ReadStream;
    type GetByKeyStream = ReadStream;

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (who, served) = self.readable(&request, &request.get_ref().destination)?;
        let request = request.into_inner();
        let filter = Arc::new(Filter::of(&served, &request)?);
        Fresh::of(request.freshness)?.wait(&served).await?;
        let after = self.cursor(&served, &request).await?;
        let service = self.clone();
        Ok(stream(move |give| async move {
            let running = served.context.meter.gauge(names::READ_SUBSCRIPTIONS);
            running.increment(1.0);
            let outcome = service.subscription(who, served, after, (request, filter), &give).await;
            running.decrement(1.0);
            outcome
        }))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let (who, all) = self.all_readable(&request, request.get_ref().destination.as_deref())?;
        let (request, service) = (request.into_inner(), self.clone());
        Ok(stream(move |give| async move { service.found(&who, &all, &request, &give).await }))
    }

    async fn get_by_key(
        &self,
        request: Request<proto::GetByKeyRequest>,
    ) -> Result<Response<Self::GetByKeyStream>, Status> {
        let (who, served) = self.readable(&request, &request.get_ref().destination)?;
        let (request, service) = (request.into_inner(), self.clone());
        Ok(stream(move |give| async move { service.by_key(&who, &served, &request, &give).await }))
    }

    async fn status(&self, request: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        let asked = Asked::of(request.get_ref().of.clone())?;
        let only = match &asked {
            Asked::Ticket(ticket) => Some(ticket.destination.to_string()),
            Asked::Beginning(..) => request.get_ref().destination.clone(),
        };
        let (_, all) = self.all_readable(&request, only.as_deref())?;
        let fresh = Fresh::of(request.get_ref().freshness)?;
        let mut response = proto::StatusResponse::default();
        for served in all {
            let name = served.context.destination.to_string();
            if fresh.wait(&served).await.is_err() || !*served.replayed.borrow() {
                response.unavailable.push(name);
                continue;
            }
            response.at.insert(name, lookup::held(&served).0.into());
            let mut found = lookup::statuses(&served, &asked, STATUSES + 1)?;
            found.sort_by(|one, other| {
                let id = |status: &proto::TransactionStatus| {
                    status.ticket.as_ref().map(|ticket| ticket.transaction.clone()).unwrap_or_default()
                };
                id(one).cmp(&id(other))
            });
            response.statuses.extend(found);
        }
        response.more = response.statuses.len() > STATUSES;
        response.statuses.truncate(STATUSES);
        Ok(Response::new(response))
    }

    async fn node_status(
        &self,
        request: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatusResponse>, Status> {
        let (_, all) = self.all_readable(&request, None)?;
        let directory = self.0.gate.directory();
        let groups = all.iter().map(|served| status::group(served)).collect::<Result<_, _>>().map_err(unavailable)?;
        let uptime = self.0.clock.monotonic().saturating_sub(self.0.started);
        Ok(Response::new(proto::NodeStatusResponse {
            node: self.0.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            directory_version: directory.version,
            directory_valid_until_ms: directory.valid_until.0,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            groups,
            alarms: status::alarms(&self.0.alarms),
            environment: directory.name.to_string(),
        }))
    }
}
