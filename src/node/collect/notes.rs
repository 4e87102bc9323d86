//! What collecting makes durable: notes of deferred records, refusals, offsets, in their order (R16, R22).
//!
//! Owns what waits for the store, and what a full disk sent back. Must not decide what is noted.

use std::ops::RangeInclusive;

use tokio::sync::mpsc;

use crate::core::gather::{Address, Mark, ParcelKey};
use crate::core::id::Digest;
use crate::core::receipt::NoticeRecord;
use crate::node::alarms::{self, Alarms};
use crate::store::StoreError;
use crate::store::group::{DeferredRow, GroupStore, Mutation};

/// Notes that a full disk sent back, beyond which nothing more is taken in.
const UNKEPT: usize = 4096;

/// The alarm of notes that a full disk sent back.
const ALARM: &str = alarms::NOTES_NOT_KEPT;

/// One thing to make durable.
#[derive(Debug, Clone)]
pub(super) enum Note {
    /// This record is to be read again.
    Defer(Address, DeferredRow),
    /// Those of this partition between these offsets are not.
    Undefer(i32, RangeInclusive<i64>),
    /// This parcel was refused; the notice is published once the refusal is durable.
    Refuse(ParcelKey, Digest, NoticeRecord),
    /// So far was a partition collected.
    Offset(i32, Mark),
}

impl Note {
    fn mutation(&self) -> Mutation {
        match self {
            Self::Defer(at, row) => Mutation::Defer { at: *at, row: *row },
            Self::Undefer(partition, offsets) => Mutation::Undefer { partition: *partition, offsets: offsets.clone() },
            Self::Refuse(_, digest, notice) => {
                Mutation::Refuse { digest: *digest, notice: notice.value.clone().into() }
            }
            Self::Offset(partition, mark) => Mutation::SetOffset { partition: *partition, mark: *mark },
        }
    }
}

/// What the store made of some notes.
pub(super) enum Answer {
    Kept { again: bool, refusals: Vec<(ParcelKey, NoticeRecord)> },
    SentBack { again: bool, notes: Vec<Note>, cause: String },
}

/// What the collector learns from an [`Answer`].
#[derive(Default)]
pub(super) struct Learned {
    /// Refusals that are durable now, to be published.
    pub refusals: Vec<(ParcelKey, NoticeRecord)>,
    /// Offsets may have been sent back: they are to be noted again.
    pub offsets_lost: bool,
}

/// The collector's way to the store. Keeps the order of what it is given; a disk that is full delays it, and nothing that
/// follows from it is written before: the store holds offsets back until all that was sent back is written.
pub(super) struct Notes {
    store: GroupStore,
    alarms: Alarms,
    next: Vec<Note>,
    /// Deferrals and refusals that a full disk sent back, in their order.
    unkept: Vec<Note>,
    /// Whether `unkept` is being tried again.
    trying: bool,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Notes {
    /// Nothing to write yet, and where the store's answers come out; they go to [`Notes::answered`].
    pub fn new(store: GroupStore, alarms: Alarms) -> (Self, mpsc::UnboundedReceiver<Answer>) {
        let (answers, answered) = mpsc::unbounded_channel();
        // What an earlier life could not note is read again by this one.
        alarms.clear(ALARM);
        (Self { store, alarms, next: Vec::new(), unkept: Vec::new(), trying: false, answers }, answered)
    }

    /// Adds something to write.
    pub fn push(&mut self, note: Note) {
        self.next.push(note);
    }

    /// Whether everything that a full disk sent back is written by now: before, no offset moves.
    pub fn all_kept(&self) -> bool {
        self.unkept.is_empty() && !self.trying
    }

    /// Whether more may be taken in.
    pub fn has_room(&self) -> bool {
        self.unkept.len() < UNKEPT
    }

    /// Hands over what was added. What stops the store stops the node (`GroupStore::failed`).
    pub fn write_down(&mut self) {
        let notes = std::mem::take(&mut self.next);
        self.submit(notes, false);
    }

    /// Tries again what was sent back.
    pub fn try_again(&mut self) {
        if !self.trying && !self.unkept.is_empty() {
            self.trying = true;
            let notes = std::mem::take(&mut self.unkept);
            self.submit(notes, true);
        }
    }

    fn submit(&self, notes: Vec<Note>, again: bool) {
        if notes.is_empty() {
            return;
        }
        let mutations = notes.iter().map(Note::mutation).collect();
        let answers = self.answers.clone();
        let done = move |result| {
            let answer = match result {
                Ok(()) => {
                    let refusals: Vec<_> = notes.into_iter().filter_map(refusal).collect();
                    (again || !refusals.is_empty()).then_some(Answer::Kept { again, refusals })
                }
                Err(error @ StoreError::DiskFull { .. }) => {
                    Some(Answer::SentBack { again, notes, cause: error.to_string() })
                }
                // The store has stopped, and says so itself.
                Err(_) => None,
            };
            if let Some(answer) = answer {
                // The collector may be gone: the next start reads again what was not noted.
                let _ = answers.send(answer);
            }
        };
        self.store.submit(mutations, Box::new(done));
    }

    /// Takes an answer of the store.
    pub fn answered(&mut self, answer: Answer) -> Learned {
        match answer {
            Answer::Kept { again, refusals } => {
                if again {
                    self.trying = false;
                    if self.unkept.is_empty() {
                        self.alarms.clear(ALARM);
                    }
                }
                Learned { refusals, offsets_lost: false }
            }
            Answer::SentBack { again, notes, cause } => {
                if again {
                    self.trying = false;
                }
                let later = std::mem::take(&mut self.unkept);
                let (before, after) = if again { (notes, later) } else { (later, notes) };
                // A note that stays too long only costs a reading after a restart; written late, its removal could remove a
                // newer one. Offsets are noted anew.
                let wanted = |note: &Note| matches!(note, Note::Defer(..) | Note::Refuse(..));
                self.unkept = before.into_iter().chain(after).filter(wanted).collect();
                if !self.unkept.is_empty() {
                    let text =
                        format!("{cause}; what could not be noted is noted once there is space, and offsets wait");
                    self.alarms.raise(ALARM, text);
                }
                Learned { refusals: Vec::new(), offsets_lost: true }
            }
        }
    }

    /// The last write, before the end: the refusals that are durable with it, to be published. What a full disk sends back now
    /// is read again after the next start: offsets stand before it. Errors: what stopped the store.
    pub async fn finish(&mut self) -> Result<Vec<(ParcelKey, NoticeRecord)>, StoreError> {
        let notes: Vec<Note> = self.unkept.drain(..).chain(self.next.drain(..)).collect();
        match self.store.write(notes.iter().map(Note::mutation).collect()).await {
            Ok(()) => Ok(notes.into_iter().filter_map(refusal).collect()),
            Err(StoreError::DiskFull { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn refusal(note: Note) -> Option<(ParcelKey, NoticeRecord)> {
    match note {
        Note::Refuse(parcel, _, notice) => Some((parcel, notice)),
        _ => None,
    }
}
