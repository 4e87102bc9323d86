//! Watching the parts of all destinations: one that ends while the node runs is fatal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::core::id::DestinationName;
use crate::node::NodeError;
use crate::node::group::AllServed;
use crate::raft::{Group, GroupError, Stage};
use crate::seams::Clock;

/// How long after one of its parts a store or a consensus may say that it failed.
const CAUSE: Duration = Duration::from_millis(500);

/// One part of a destination that ended.
pub(super) type Ended = (DestinationName, &'static str, Result<(), NodeError>);

/// Waits until consensus has failed.
async fn failed(group: &Group) -> GroupError {
    let mut stage = group.stage();
    loop {
        if let Stage::Failed(cause) = &*stage.borrow_and_update() {
            return GroupError::Consensus { cause: cause.clone() };
        }
        if stage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the parts of all destinations. One that ends while the node runs is fatal.
pub(super) async fn watch_over(
    served: AllServed,
    mut running: JoinSet<Ended>,
    fatal: watch::Sender<Option<Arc<NodeError>>>,
    stopping: CancellationToken,
    clock: Arc<dyn Clock>,
) {
    let tell = |error: NodeError| {
        tracing::error!(%error, "the node cannot go on");
        fatal.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                *first = Some(Arc::new(error));
            }
            new
        });
    };
    let mut failures = JoinSet::new();
    for (name, served) in served.iter() {
        let (name, store, group) = (name.clone(), served.context.store.clone(), served.group.clone());
        failures.spawn(async move {
            tokio::select! {
                cause = store.failed() => NodeError::Store {
                    destination: name,
                    cause: crate::store::StoreError::Stopped { cause: cause.to_string() },
                },
                cause = failed(&group) => NodeError::Consensus { destination: name, cause },
            }
        });
    }
    loop {
        tokio::select! {
            Some(Ok(error)) = failures.join_next() => if !stopping.is_cancelled() { tell(error) },
            ended = running.join_next() => {
                let error = match ended {
                    None => break,
                    Some(Ok((destination, part, Ok(())))) => NodeError::Ended { destination, part },
                    Some(Ok((_, _, Err(error)))) => error,
                    Some(Err(error)) if error.is_panic() => match served.keys().next().cloned() {
                        Some(destination) => NodeError::Ended { destination, part: "one of its parts" },
                        None => continue,
                    },
                    Some(Err(_)) => continue,
                };
                if stopping.is_cancelled() {
                    continue;
                }
                // A store or a consensus that failed ends the parts that lean on it: what it says itself is why.
                tokio::select! {
                    Some(Ok(cause)) = failures.join_next() => tell(cause),
                    () = clock.sleep(CAUSE) => tell(error),
                }
            }
        }
    }
    failures.shutdown().await;
}
