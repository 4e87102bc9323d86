//! From what became of each message to rows.
//!
//! Owns which figure is compared with which, and the targets of latency.

use std::collections::BTreeMap;

use super::rows::{Row, Target};
use super::stats::{Spread, quantile_of_blocks};
use super::words::{Arm, Condition};

/// What became of one message. Times are milliseconds from the moment at which it was to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Which way.
    pub arm: Arm,
    /// Which part of the run, for the spread.
    pub block: usize,
    /// When each of the readers had opened it.
    pub delivered: Vec<Option<f64>>,
    /// When the brokers had it.
    pub accepted: Option<f64>,
    /// When a majority had confirmed that it is stored.
    pub committed: Option<f64>,
    /// How long it was waited for.
    pub waited: f64,
}

/// All messages of one arm under one condition and of one size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Messages that were sent.
    pub sent: usize,
    /// Messages that all readers opened.
    pub delivered_whole: usize,
    /// Messages that were accepted.
    pub accepted_whole: usize,
    /// Messages that were committed.
    pub committed_whole: usize,
    /// Times by block. What never came counts as the time that it was waited for, which flatters it.
    pub delivered: Vec<Vec<f64>>,
    /// The same.
    pub accepted: Vec<Vec<f64>>,
    /// The same; empty for arms that confirm nothing.
    pub committed: Vec<Vec<f64>>,
}

/// Everything about latency.
#[derive(Debug, Clone, Default)]
pub struct Results(BTreeMap<(Condition, u64, Arm), Measured>);

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Delivered,
    Accepted,
    Committed,
}

const STEPS: [(Step, &str); 3] =
    [(Step::Delivered, "delivered"), (Step::Accepted, "accepted"), (Step::Committed, "committed")];
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

impl Measured {
    fn add(&mut self, outcome: &Outcome) {
        self.sent += 1;
        self.delivered_whole += usize::from(outcome.delivered.iter().all(Option::is_some));
        self.accepted_whole += usize::from(outcome.accepted.is_some());
        self.committed_whole += usize::from(outcome.committed.is_some());
        for steps in [&mut self.delivered, &mut self.accepted, &mut self.committed] {
            while steps.len() <= outcome.block {
                steps.push(Vec::new());
            }
        }
        let came = |time: &Option<f64>| time.unwrap_or(outcome.waited);
        if let Some(block) = self.delivered.get_mut(outcome.block) {
            block.extend(outcome.delivered.iter().map(came));
        }
        if let Some(block) = self.accepted.get_mut(outcome.block) {
            block.push(came(&outcome.accepted));
        }
        if let Some(block) = self.committed.get_mut(outcome.block)
            && outcome.arm.commits()
        {
            block.push(came(&outcome.committed));
        }
    }

    fn figure(&self, step: Step, q: f64) -> Option<Spread> {
        let blocks = match step {
            Step::Delivered => &self.delivered,
            Step::Accepted => &self.accepted,
            Step::Committed => &self.committed,
        };
        quantile_of_blocks(blocks, q)
    }
}

impl Results {
    /// Adds what became of the messages of one size under one condition.
    pub fn add(&mut self, condition: Condition, payload: u64, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.0.entry((condition, payload, outcome.arm)).or_default().add(outcome);
        }
    }

    fn value(&self, condition: Condition, payload: u64, arm: Arm, step: Step, q: f64) -> Option<f64> {
        Some(self.0.get(&(condition, payload, arm))?.figure(step, q)?.value)
    }

    /// All rows: each quantile of each step beside that of the arm that it is compared with, then what has another comparison.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&(condition, payload, arm), measured) in &self.0 {
            for (step, step_word) in STEPS {
                for (quantile_word, q) in QUANTILES {
                    let Some(figure) = measured.figure(step, q) else { continue };
                    let name = format!("{step_word} {quantile_word}");
                    rows.push(self.compared(
                        Row::new(name, arm, condition, payload, figure).messages(measured.sent),
                        (condition, payload, arm, step, q),
                    ));
                }
            }
            let share = |whole: usize| {
                let value = 100.0 * whole as f64 / measured.sent.max(1) as f64;
                Spread { value, least: value, most: value }
            };
            let all =
                |name, whole| Row::new(name, arm, condition, payload, share(whole)).unit("%").messages(measured.sent);
            let delivered = all("delivered in the end", measured.delivered_whole);
            let accepted = all("accepted in the end", measured.accepted_whole);
            let must_all = |row: Row, when| {
                if arm == Arm::Memory && condition == when { row.must(Target::AtLeast(100.0)) } else { row }
            };
            // That everything came is worth a row only where something could be lost, or was.
            let tells = |row: &Row| condition != condition.undisturbed() || row.value < 100.0;
            let shares = [must_all(delivered, Condition::Killed), must_all(accepted, Condition::Rolled)];
            rows.extend(shares.into_iter().filter(tells));
            if arm.is_sealcast() && condition != condition.undisturbed() {
                rows.extend(self.beside_itself(condition, payload, arm, measured));
            }
            if arm == Arm::Memory
                && condition == Condition::Slow
                && let Some(figure) = measured.figure(Step::Delivered, 0.99)
                && let Some(other) = self.value(condition, payload, Arm::ChunksThree, Step::Delivered, 0.99)
            {
                let row = Row::new("delivered p99", arm, condition, payload, figure).messages(measured.sent);
                rows.push(row.against(Arm::ChunksThree.word(), other).must(Target::AtMost(0.02)));
            }
        }
        rows
    }

    /// A row beside the arm that it is compared with under the same condition.
    fn compared(&self, row: Row, (condition, payload, arm, step, q): (Condition, u64, Arm, Step, f64)) -> Row {
        let with = if step == Step::Committed { Arm::Pipeline } else { Arm::SealedThree };
        if arm == with {
            return row;
        }
        let Some(value) = self.value(condition, payload, with, step, q) else { return row };
        let row = row.against(with.word(), value);
        // Targets are of the arm whose outbox is in memory; the others stand beside it as they are.
        match (arm, target(condition, payload, step, q)) {
            (Arm::Memory, Some(target)) => row.must(target),
            _ => row,
        }
    }

    /// Rows beside the same arm undisturbed.
    fn beside_itself(&self, condition: Condition, payload: u64, arm: Arm, measured: &Measured) -> Vec<Row> {
        let most = match condition {
            Condition::Slow => 1.25,
            _ => 5.0,
        };
        let undisturbed = condition.undisturbed();
        let row = |step, name: &str, most| {
            let figure = measured.figure(step, 0.99)?;
            let own = self.value(undisturbed, payload, arm, step, 0.99)?;
            let row = Row::new(name, arm, condition, payload, figure).messages(measured.sent);
            let row = row.against(format!("itself, {}", undisturbed.word()), own);
            Some(if arm == Arm::Memory && condition != Condition::Paused {
                row.must(Target::AtMost(most))
            } else {
                row
            })
        };
        let accepted = |most| row(Step::Accepted, "accepted p99", most);
        let delivered = row(Step::Delivered, "delivered p99", most);
        [delivered, accepted(if condition == Condition::Rolled { 5.0 } else { 1.5 })].into_iter().flatten().collect()
    }
}

/// Targets of comparisons with the arm that a row stands beside.
fn target(condition: Condition, payload: u64, step: Step, q: f64) -> Option<Target> {
    let (median, tail) = (q == 0.5, q == 0.99);
    match (condition, step) {
        (Condition::AllWell, Step::Delivered) if median => match payload >> 10 {
            1 => Some(Target::AtMost(1.3)),
            64 => Some(Target::AtMost(1.0)),
            1024.. => Some(Target::AtMost(0.6)),
            _ => None,
        },
        (Condition::AllWell, Step::Delivered) if tail => Some(Target::AtMost(0.6)),
        (Condition::AllWell, Step::Committed) if median && payload >> 10 == 64 => Some(Target::AtMost(1.25)),
        (Condition::Slow, Step::Delivered) if tail => Some(Target::AtMost(0.04)),
        (Condition::Slow, Step::Committed) if tail => Some(Target::AtMost(0.05)),
        _ => None,
    }
}
