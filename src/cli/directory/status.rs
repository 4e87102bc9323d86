//! `sealcast directory status`: which version each node has in force.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::read_either;
use crate::cli::session::{Asked, block_on};
use crate::cli::{CliError, Context, Exit, Row};
use crate::client::reader::Reader;
use crate::core::directory::{Draft, Span};
use crate::core::id::NodeName;

/// How often nodes are asked again while it is waited.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// A directory: whether its version is in force
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    asked: Asked,

    /// Wait until it is in force everywhere, at most so long, for example 30s
    #[arg(long, value_name = "TIME", requires = "file")]
    wait: Option<Span>,
}

#[derive(Debug, Serialize)]
struct Shown {
    node: String,
    destination: String,
    in_force: Option<u64>,
    wanted: Option<u64>,
    state: &'static str,
}

impl Shown {
    /// Whether the wanted version, or a later one, is in force.
    fn is_there(&self) -> bool {
        self.in_force.is_some_and(|in_force| in_force >= self.wanted.unwrap_or(1))
    }
}

impl Row for Shown {
    const HEADS: &'static [&'static str] = &["node", "destination", "in force", "wanted", "state"];

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            self.node.clone(),
            self.destination.clone(),
            number(self.in_force),
            number(self.wanted),
            self.state.to_owned(),
        ]
    }
}

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<Exit, CliError> {
        let wanted = self.file.as_deref().map(read_either).transpose()?;
        let seams = context.seams.clone();
        block_on(async {
            let reader = self.asked.reader(context)?;
            let began = seams.clock.monotonic();
            let patience = self.wait.map_or(Duration::ZERO, |wait| wait.0);
            loop {
                let (rows, silent) = self.ask(&reader, wanted.as_ref()).await;
                let there = silent.is_empty() && rows.iter().all(Shown::is_there);
                if !there && seams.clock.monotonic().saturating_sub(began) < patience {
                    seams.clock.sleep(AGAIN).await;
                    continue;
                }
                if !rows.is_empty() {
                    context.output.rows(&rows)?;
                }
                let mut exit = if there { Exit::Done } else { Exit::Unknown };
                for error in silent {
                    exit = error.exit();
                    context.output.complain(&error);
                }
                return Ok(exit);
            }
        })
    }

    /// What each node has in force, and what the nodes say that do not tell.
    async fn ask(&self, reader: &Reader, wanted: Option<&Draft>) -> (Vec<Shown>, Vec<CliError>) {
        let (mut rows, mut silent) = (Vec::new(), Vec::new());
        let directory = reader.directory();
        let nodes: Vec<NodeName> = match self.asked.node() {
            Some(node) => vec![node.clone()],
            None => directory.nodes.keys().cloned().collect(),
        };
        for node in nodes {
            let answer = match reader.node_status(&node).await {
                Ok(answer) => answer,
                Err(error) => {
                    silent.push(CliError::from(error));
                    continue;
                }
            };
            let mut in_force: BTreeMap<String, Option<u64>> = BTreeMap::new();
            if let Some(wanted) = wanted {
                let served = wanted.destinations.values().filter(|entry| entry.has_node(&node));
                in_force.extend(served.map(|entry| (entry.name.to_string(), None)));
            }
            for group in &answer.groups {
                in_force.insert(group.destination.clone(), Some(group.directory_version));
            }
            rows.extend(in_force.into_iter().map(|(destination, in_force)| Shown {
                node: node.to_string(),
                destination,
                in_force,
                wanted: wanted.map(|wanted| wanted.version),
                state: state(in_force, wanted.map(|wanted| wanted.version)),
            }));
        }
        (rows, silent)
    }
}

fn state(in_force: Option<u64>, wanted: Option<u64>) -> &'static str {
    match (in_force, wanted) {
        (None, _) => "not served yet: restart the node with the new directory and key ring",
        (Some(0), _) => "its log has none yet",
        (Some(has), Some(wanted)) if has < wanted => "not yet",
        (Some(has), Some(wanted)) if has > wanted => "a later one is in force",
        _ => "in force",
    }
}
