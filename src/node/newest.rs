//! The newest directory that a node goes by: who its callers are, what readers may read, who votes where. It comes from the
//! node's own file and from the logs of the groups that it serves.
//!
//! One process may serve several groups, and each log has its own version in force. A version that one of them has put in
//! force and under which another could not go on (it drops that group's destination, or names other voters) stays that
//! group's alone: the node goes on by the newest that all of them can live with, and an alarm says so.
//!
//! Owns that choice. Must not put a directory in force: that is each group's log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::alarms::{self, Alarms};
use crate::core::directory::Directory;
use crate::core::id::DestinationName;

/// The alarm of a version that not all groups can live with.
const ALARM: &str = alarms::DIRECTORY_CONTRADICTS;

/// The newest directory for all groups of a node. Cheap to clone.
#[derive(Clone)]
pub struct Newest(Arc<Inner>);

struct Inner {
    newest: watch::Sender<Arc<Directory>>,
    /// What each group's log has in force; before it has any, what this node would found the group with.
    in_force: Mutex<BTreeMap<DestinationName, Arc<Directory>>>,
    alarms: Alarms,
}

impl Newest {
    /// Begins with the node's own. `alarms` are those of the node as a whole.
    pub fn new(own: Arc<Directory>, alarms: Alarms) -> Self {
        Self(Arc::new(Inner { newest: watch::Sender::new(own), in_force: Mutex::default(), alarms }))
    }

    /// The newest, and news of it.
    pub fn watch(&self) -> watch::Receiver<Arc<Directory>> {
        self.0.newest.subscribe()
    }

    /// Takes one that the node's operator handed over, and that was checked.
    pub fn take(&self, directory: Arc<Directory>) {
        self.0.newest.send_replace(directory);
        self.look();
    }

    /// Takes what these groups' logs have in force, or are founded with, all at once.
    pub fn in_force(&self, directories: impl IntoIterator<Item = (DestinationName, Arc<Directory>)>) {
        self.0.in_force.lock().unwrap_or_else(PoisonError::into_inner).extend(directories);
        self.look();
    }

    /// Chooses anew.
    fn look(&self) {
        let in_force = self.0.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let mut against = None;
        self.0.newest.send_if_modified(|newest| {
            let before = newest.version;
            let mut versions: Vec<_> = in_force.iter().collect();
            versions.sort_by_key(|(_, directory)| directory.version);
            for (of, directory) in versions {
                if directory.version < newest.version || directory.bytes() == newest.bytes() {
                    continue;
                }
                if directory.version == newest.version {
                    against = Some(format!(
                        "version {} of the directory is in force in the log of {of}, and another of the same version here; the \
                         latter says who may connect: sign the next version and hand it to the nodes",
                        directory.version
                    ));
                    continue;
                }
                let refused = in_force.iter().find_map(|(name, its)| directory.check_keeps(its, name).err());
                match refused {
                    None => *newest = directory.clone(),
                    Some(why) => {
                        against = Some(format!(
                            "version {} of the directory is in force in the log of {of}, and this node does not go by it: {why}; \
                             sign the next version so that all groups can go on under it",
                            directory.version
                        ));
                    }
                }
            }
            newest.version > before
        });
        match against {
            Some(text) => self.0.alarms.raise(ALARM, text),
            None => self.0.alarms.clear(ALARM),
        }
    }
}
