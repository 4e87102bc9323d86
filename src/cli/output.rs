//! Data on stdout: a table for people, or JSON, one versioned object a line.
//!
//! Owns the two formats. Must not know what is printed.

use std::io::{self, Write};

use serde::Serialize;

use super::CliError;
use crate::core::id::Ticket;

/// The version of the JSON objects: the `v` in each. It changes when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// How data and errors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// One JSON object a line, each with `"v":1`.
    Json,
}

/// Something that a table shows as a row and JSON as an object.
pub trait Row: Serialize {
    /// The heads of the columns.
    const HEADS: &'static [&'static str];

    /// The cells, one for each head.
    fn cells(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    data: &'a T,
}

/// Where data goes.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Prints in this format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints one JSON object with its version on a line, whatever the format; `data` must be a map or struct.
    pub fn object(&self, data: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(&Versioned { v: VERSION, data }).map_err(io::Error::other)?;
        line.push('\n');
        self.raw(line.as_bytes())
    }

    /// Prints text and a line feed, whatever the format.
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are, whatever the format.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Says something beside the data, on stderr: a line for people, or one JSON object.
    pub fn note(&self, text: &str) {
        let text = match self.format {
            Format::Table => format!("sealcast: {text}"),
            Format::Json => serde_json::json!({"v": VERSION, "note": text}).to_string(),
        };
        // With stderr closed there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Says, beside the data, under which ticket something was submitted.
    pub fn submitted(&self, source: &str, ticket: &Ticket) {
        let text = match self.format {
            Format::Table => format!("sealcast: submitted {source}: {ticket}"),
            Format::Json => {
                serde_json::json!({"v": VERSION, "note": "submitted", "source": source, "ticket": ticket}).to_string()
            }
        };
        // With stderr closed there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Prints an error that does not end the command.
    pub fn complain(&self, error: &CliError) {
        error.print(self.format);
    }

    /// Prints rows of a table that comes in pieces: the heads once, which are wide enough to keep columns apart.
    pub fn more_rows<R: Row>(&self, rows: &[R], first: bool) -> io::Result<()> {
        if self.is_json() {
            return self.rows(rows);
        }
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let text = table(R::HEADS, &cells);
        let shown = if first { text.as_str() } else { text.split_once('\n').map_or("", |(_, rows)| rows) };
        self.raw(shown.as_bytes())
    }

    /// Prints all rows: aligned under their heads, or as one object each.
    pub fn rows<R: Row>(&self, rows: &[R]) -> io::Result<()> {
        match self.format {
            Format::Json => rows.iter().try_for_each(|row| self.object(row)),
            Format::Table => {
                let cells: Vec<_> = rows.iter().map(Row::cells).collect();
                self.raw(table(R::HEADS, &cells).as_bytes())
            }
        }
    }
}

/// Lays cells out in columns, two spaces apart.
fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|head| head.to_uppercase()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&heads]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in [&heads].into_iter().chain(rows) {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["größer".to_owned(), String::new()]];
        assert_eq!(table(&["name", "at"], &rows), "NAME    AT\na       x\ngrößer\n");
    }
}
