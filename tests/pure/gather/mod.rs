//! The reassembler against a driver that does what a node does (log, notes, cursors, blocking work) and a model that knows
//! what must come out. Numbers in names are those of the list of inputs that must be refused.

mod chain;
mod contradicting;
mod memory;
mod model;
mod pressure;
mod refusal;
mod waiting;
