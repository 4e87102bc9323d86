//! What a full disk refused to note, so that no offset passes it (R16).
//!
//! Owns the list of it. Must not look at the disk, nor answer a job: the writer does.

use std::collections::BTreeSet;

use super::job::{Job, Mutation};
use crate::core::gather::Address;
use crate::core::id::Digest;

/// What stands for records that an offset passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owed {
    Note(Address),
    Refusal(Digest),
}

impl Owed {
    fn by(mutation: &Mutation) -> Option<Self> {
        match mutation {
            Mutation::Defer { at, .. } => Some(Self::Note(*at)),
            Mutation::Refuse { digest, .. } => Some(Self::Refusal(*digest)),
            _ => None,
        }
    }
}

/// What a full disk refused to note and nobody has noted since: until then no offset moves.
#[derive(Debug, Default)]
pub(super) struct Owing(BTreeSet<Owed>);

impl Owing {
    /// Whether everything that was refused was noted since.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a job must be sent back: it takes in something new and the disk is `full`, or it would pass what is owed. Notes
    /// what is owed because of it from now on, and what no longer is.
    pub(super) fn refuses(&mut self, job: &Job, full: bool) -> bool {
        let refused = full && job.admits();
        let Job::Write(mutations, _) = job else { return refused };
        for mutation in mutations {
            if let Mutation::Undefer { partition, offsets } = mutation {
                let at = |offset: &i64| Owed::Note(Address { partition: *partition, offset: *offset });
                self.0.extract_if(at(offsets.start())..=at(offsets.end()), |_| true).for_each(drop);
            }
            match Owed::by(mutation) {
                Some(owed) if refused && mutation.admits() => self.0.insert(owed),
                // Noted now, or done with meanwhile.
                Some(owed) => self.0.remove(&owed),
                None => false,
            };
        }
        let passes = mutations.iter().any(|mutation| matches!(mutation, Mutation::SetOffset { .. }));
        refused || (passes && !self.0.is_empty())
    }
}
