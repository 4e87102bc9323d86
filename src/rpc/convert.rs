//! Messages to the core's types and back, checked: what has another length, name or number than it should is refused
//! with the field's name.
//!
//! Must not interpret what it converts.

use tonic::Status;

use super::proto;
use crate::core::id::{
    DestinationName, DestinationTag, Digest, Fate, IdError, Incarnation, NodeName, ParcelId, PayloadTag, Position,
    ReaderName, Rejection, SenderName, Ticket, Time, TransactionId,
};

/// Why a message is not what it should be: always with the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The field must be there.
    #[error("{field} is missing")]
    Missing {
        /// The field, as `message.field` of the .proto files.
        field: &'static str,
    },
    /// Bytes of another length than the field has.
    #[error("{field} has {given} bytes, not {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// How many it has.
        expected: usize,
        /// How many came.
        given: usize,
    },
    /// An id or a name that is none.
    #[error("{field}: {cause}")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        cause: IdError,
    },
    /// A number that this version does not know.
    #[error("{field}: {value} is unknown to this version")]
    Unknown {
        /// The field.
        field: &'static str,
        /// The number.
        value: i64,
    },
}

impl ConvertError {
    /// Whether the same message can be taken later: only what is unknown, by a later version.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

impl From<ConvertError> for Status {
    /// As the answer to a caller whose request was wrong: INVALID_ARGUMENT. A client that gets a wrong answer keeps the
    /// [`ConvertError`].
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The field's value. Errors: [`ConvertError::Missing`].
pub fn required<T>(value: Option<T>, field: &'static str) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing { field })
}

/// Bytes of a fixed length. Errors: [`ConvertError::Length`].
pub fn array<const N: usize>(bytes: &[u8], field: &'static str) -> Result<[u8; N], ConvertError> {
    bytes.try_into().map_err(|_| ConvertError::Length { field, expected: N, given: bytes.len() })
}

macro_rules! opaque {
    ($($(#[$doc:meta])* $function:ident, $type:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// Errors: [`ConvertError::Length`].
        pub fn $function(bytes: &[u8], field: &'static str) -> Result<$type, ConvertError> {
            array(bytes, field).map($type)
        }
    )*};
}

opaque! {
    /// A group: its destination's tag, 16 bytes.
    group, DestinationTag;
    /// A digest, 32 bytes.
    digest, Digest;
    /// A store's incarnation, 16 bytes.
    incarnation, Incarnation;
    /// A payload tag, 32 bytes.
    payload_tag, PayloadTag;
}

macro_rules! uuids {
    ($($(#[$doc:meta])* $function:ident, $type:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// Errors: [`ConvertError::Length`], [`ConvertError::Id`].
        pub fn $function(bytes: &[u8], field: &'static str) -> Result<$type, ConvertError> {
            $type::from_bytes(array(bytes, field)?).map_err(|cause| ConvertError::Id { field, cause })
        }
    )*};
}

uuids! {
    /// A transaction's id, 16 bytes.
    transaction, TransactionId;
    /// A parcel's id, 16 bytes.
    parcel, ParcelId;
}

macro_rules! names {
    ($($(#[$doc:meta])* $function:ident, $type:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// Errors: [`ConvertError::Id`].
        pub fn $function(text: &str, field: &'static str) -> Result<$type, ConvertError> {
            $type::new(text).map_err(|cause| ConvertError::Id { field, cause })
        }
    )*};
}

names! {
    /// A node's name.
    node, NodeName;
    /// A sender's name.
    sender, SenderName;
    /// A reader's name.
    reader, ReaderName;
    /// A destination's name.
    destination, DestinationName;
}

impl From<Position> for proto::Position {
    fn from(position: Position) -> Self {
        Self { index: position.index, number: position.number }
    }
}

impl From<proto::Position> for Position {
    fn from(position: proto::Position) -> Self {
        Self { index: position.index, number: position.number }
    }
}

impl From<&Ticket> for proto::Ticket {
    fn from(ticket: &Ticket) -> Self {
        Self {
            destination: ticket.destination.to_string(),
            transaction: ticket.transaction.to_bytes().to_vec().into(),
            deadline_ms: ticket.deadline.0,
        }
    }
}

impl TryFrom<&proto::Ticket> for Ticket {
    type Error = ConvertError;

    fn try_from(ticket: &proto::Ticket) -> Result<Self, ConvertError> {
        Ok(Self {
            destination: destination(&ticket.destination, "Ticket.destination")?,
            transaction: transaction(&ticket.transaction, "Ticket.transaction")?,
            deadline: Time(ticket.deadline_ms),
        })
    }
}

/// How asking ended. What this version does not know is UNAVAILABLE: never taken for an answer.
pub fn answer(number: i32) -> proto::Answer {
    match proto::Answer::try_from(number) {
        Ok(proto::Answer::Unspecified) | Err(_) => proto::Answer::Unavailable,
        Ok(known) => known,
    }
}

impl From<Rejection> for proto::Rejection {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::NotPermitted => Self::NotPermitted,
            Rejection::IdReuse => Self::IdReuse,
            Rejection::Predecessor => Self::Predecessor,
            Rejection::Conflict => Self::Conflict,
            Rejection::DeadlineTooFar => Self::DeadlineTooFar,
            Rejection::Duplicate => Self::Duplicate,
        }
    }
}

/// A reason for rejection. Errors: [`ConvertError::Unknown`], also for none.
pub fn rejection(number: i32, field: &'static str) -> Result<Rejection, ConvertError> {
    u8::try_from(number)
        .ok()
        .and_then(Rejection::from_number)
        .ok_or(ConvertError::Unknown { field, value: number.into() })
}

/// A fate as state and reason of a [`proto::TransactionStatus`].
pub fn state_of(fate: Fate) -> (proto::State, proto::Rejection) {
    match fate {
        Fate::Committed => (proto::State::Committed, proto::Rejection::Unspecified),
        Fate::Rejected(reason) => (proto::State::Rejected, reason.into()),
        Fate::Expired => (proto::State::Expired, proto::Rejection::Unspecified),
    }
}

/// The fate that a status states; `None` while there is none, or nobody can say. A purged transaction is committed.
/// Errors: [`ConvertError::Unknown`].
pub fn fate_of(status: &proto::TransactionStatus) -> Result<Option<Fate>, ConvertError> {
    let unknown = ConvertError::Unknown { field: "TransactionStatus.state", value: status.state.into() };
    Ok(match proto::State::try_from(status.state).map_err(|_| unknown.clone())? {
        proto::State::Committed | proto::State::Purged => Some(Fate::Committed),
        proto::State::Rejected => Some(Fate::Rejected(rejection(status.rejection, "TransactionStatus.rejection")?)),
        proto::State::Expired => Some(Fate::Expired),
        proto::State::NotFound | proto::State::Gathering | proto::State::Staged | proto::State::Forgotten => None,
        proto::State::Unspecified => return Err(unknown),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let error = transaction(&[1, 2, 3], "GetRequest.transaction").unwrap_err();
        assert_eq!(error.to_string(), "GetRequest.transaction has 3 bytes, not 16");
        assert_eq!(Status::from(error).code(), tonic::Code::InvalidArgument);
        let error = transaction(&[0; 16], "GetRequest.transaction").unwrap_err();
        assert!(error.to_string().starts_with("GetRequest.transaction: transaction "), "{error}");
        assert!(node("No Name", "ReportRequest.node").is_err());
        assert_eq!(required(None::<u8>, "x"), Err(ConvertError::Missing { field: "x" }));
    }

    #[test]
    fn tickets_and_positions_come_back() {
        let ticket = Ticket {
            destination: DestinationName::new("orders").unwrap(),
            transaction: TransactionId::from_parts(Time(5), [1; 10]),
            deadline: Time(77),
        };
        assert_eq!(Ticket::try_from(&proto::Ticket::from(&ticket)), Ok(ticket));
        let position = Position { index: u64::MAX, number: 9 };
        assert_eq!(Position::from(proto::Position::from(position)), position);
    }

    #[test]
    fn every_fate_comes_back_and_reasons_have_the_numbers_of_the_log() {
        let reasons = (0..=255).filter_map(Rejection::from_number);
        for fate in reasons.clone().map(Fate::Rejected).chain([Fate::Committed, Fate::Expired]) {
            let (state, rejection) = state_of(fate);
            let status = proto::TransactionStatus {
                state: state.into(),
                rejection: rejection.into(),
                ..proto::TransactionStatus::default()
            };
            assert_eq!(fate_of(&status), Ok(Some(fate)));
        }
        for reason in reasons {
            assert_eq!(proto::Rejection::from(reason) as i32, i32::from(reason as u8));
        }
        let later = proto::TransactionStatus { state: 99, ..proto::TransactionStatus::default() };
        assert!(fate_of(&later).is_err());
    }

    #[test]
    fn an_unknown_answer_is_never_an_answer() {
        assert_eq!(answer(0), proto::Answer::Unavailable);
        assert_eq!(answer(99), proto::Answer::Unavailable);
        assert_eq!(answer(proto::Answer::Purged as i32), proto::Answer::Purged);
    }
}
