//! Which committed row is the n-th: every so many-th is noted, so that where the last n begin is found without reading them.
//!
//! Owns the rows of `ranks`. Must not make a fate.

use super::state::named_row;
use super::tables::{Source, Tables, Writable, Writing, get, position_key, put, read_position, rows};
use crate::core::decide::Row;
use crate::core::id::Position;
use crate::store::StoreError;

/// Every committed row whose number is a multiple of this is noted.
const STEP: u64 = 256;
/// Rows that are read at once.
const AT_ONCE: usize = 256;

/// Notes where the committed row stands that is the `number`-th, from 1, if it is one of those that are noted.
pub(super) fn note(ranks: &mut Writable<'_>, number: u64, position: Position) -> Result<(), StoreError> {
    match number % STEP {
        0 => put(ranks, &(number / STEP).to_be_bytes(), &position_key(position)),
        _ => Ok(()),
    }
}

/// Notes what a store lacks that was written before there were notes. `committed` is how many rows are.
pub(super) fn fill(tables: &mut Tables<Writing<'_>>, committed: u64) -> Result<(), StoreError> {
    let noted = last(tables)?;
    if noted >= committed / STEP {
        return Ok(());
    }
    let (mut number, mut after) = (noted * STEP, at(tables, noted)?);
    loop {
        let found = committed_after(tables, after, Position { index: u64::MAX, number: u32::MAX })?;
        let Some((end, found)) = found else { return Ok(()) };
        for row in found {
            number += 1;
            note(tables.ranks_mut()?, number, row.position)?;
        }
        after = end;
    }
}

/// The first of the last `count` committed rows up to `through`; none when nothing is committed there.
pub(super) fn first_of_last<S: Source>(
    tables: &Tables<S>,
    through: Position,
    count: u64,
) -> Result<Option<Row>, StoreError> {
    // The last note up to there, by halving.
    let (mut low, mut high) = (0, last(tables)?);
    while low < high {
        let middle = high - (high - low) / 2;
        if at(tables, middle)? <= through { low = middle } else { high = middle - 1 }
    }
    let (mut number, mut after) = (low * STEP, at(tables, low)?);
    while let Some((end, found)) = committed_after(tables, after, through)? {
        number += found.len() as u64;
        after = end;
    }
    if number == 0 || count == 0 {
        return Ok(None);
    }
    let wanted = number.saturating_sub(count - 1).max(1);
    let note = (wanted - 1) / STEP;
    let (mut left, mut after) = (wanted - note * STEP, at(tables, note)?);
    while let Some((end, found)) = committed_after(tables, after, through)? {
        match found.len() as u64 {
            here if here < left => left -= here,
            _ => return Ok(found.into_iter().nth((left - 1) as usize)),
        }
        after = end;
    }
    Ok(None)
}

/// How many notes there are.
fn last<S: Source>(tables: &Tables<S>) -> Result<u64, StoreError> {
    let last = rows(tables.ranks()?, .., true, 1)?;
    let key = last.first().and_then(|(key, _)| key.first_chunk::<8>());
    Ok(key.map_or(0, |key| u64::from_be_bytes(*key)))
}

/// Where the committed row of a note stands; for 0, before all.
fn at<S: Source>(tables: &Tables<S>, note: u64) -> Result<Position, StoreError> {
    if note == 0 {
        return Ok(Position::default());
    }
    match get(tables.ranks()?, &note.to_be_bytes())? {
        Some(row) => read_position(&row),
        None => Err(StoreError::damaged("ranks", note, "it is not there")),
    }
}

/// The committed ones of the next rows after a position and up to another, and the last of all these; none behind the last row.
fn committed_after<S: Source>(
    tables: &Tables<S>,
    after: Position,
    through: Position,
) -> Result<Option<(Position, Vec<Row>)>, StoreError> {
    let from = Position { number: after.number.saturating_add(1), ..after };
    if from > through {
        return Ok(None);
    }
    let found = rows(tables.positions()?, position_key(from)..=position_key(through), false, AT_ONCE)?;
    let Some((end, _)) = found.last() else { return Ok(None) };
    let mut committed = Vec::new();
    for (_, key) in &found {
        let row = named_row(tables, key)?;
        if row.is_committed() {
            committed.push(row);
        }
    }
    Ok(Some((read_position(end)?, committed)))
}
