//! Rows: one figure each, beside what it is compared with and the target of that comparison.

use serde::Serialize;
use serde_json::Value;

use super::stats::Spread;
use super::words::{Arm, Condition, size};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured: `delivered p99`, `throughput`.
    pub name: String,
    /// Which way of bringing it.
    pub arm: String,
    /// What it is compared with; none when it stands alone.
    pub baseline: Option<String>,
    /// What happened to the brokers.
    pub condition: String,
    /// Payload bytes of one message.
    pub payload: u64,
    /// Messages of which the figure is, each arm's alike; none where it is not of single messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<usize>,
    /// The figure.
    pub value: f64,
    /// Its lowest block or run.
    pub least: f64,
    /// Its highest block or run.
    pub most: f64,
    /// Of what the figure is.
    pub unit: String,
    /// The figure divided by the baseline's.
    pub ratio: Option<f64>,
    /// What it must be: `<= 1.3`; of the ratio where there is one, else of the figure.
    pub target: Option<String>,
    /// Whether it is.
    pub met: Option<bool>,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Target {
    /// What [`Row::target`] says: `<= 1.3`; `None` for other text.
    pub fn of_text(text: &str) -> Option<Self> {
        let (sign, value) = text.split_once(' ')?;
        let value = value.parse().ok()?;
        match sign {
            "<=" => Some(Self::AtMost(value)),
            ">=" => Some(Self::AtLeast(value)),
            _ => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl Row {
    /// A figure that stands alone.
    pub fn new(name: impl Into<String>, arm: Arm, condition: Condition, payload: u64, figure: Spread) -> Self {
        Self {
            name: name.into(),
            arm: arm.word().to_owned(),
            baseline: None,
            condition: condition.word().to_owned(),
            payload,
            messages: None,
            value: figure.value,
            least: figure.least,
            most: figure.most,
            unit: "ms".to_owned(),
            ratio: None,
            target: None,
            met: None,
        }
    }

    /// Of so many messages.
    pub fn messages(self, messages: usize) -> Self {
        Self { messages: Some(messages), ..self }
    }

    /// In this unit, of which milliseconds are the default.
    pub fn unit(self, unit: &str) -> Self {
        Self { unit: unit.to_owned(), ..self }
    }

    /// Compared with this figure of `baseline`. A baseline of zero gives no ratio.
    pub fn against(self, baseline: impl Into<String>, value: f64) -> Self {
        let ratio = (value != 0.0).then(|| self.value / value);
        Self { baseline: Some(baseline.into()), ratio, ..self }
    }

    /// What must hold: of the ratio when the row has a baseline, else of the figure.
    pub fn must(self, target: Target) -> Self {
        let met = self.judged().is_some_and(|value| target.holds(value));
        Self { target: Some(target.text()), met: Some(met), ..self }
    }

    /// What a target is of: the ratio when the row has a baseline, else the figure.
    pub fn judged(&self) -> Option<f64> {
        if self.baseline.is_some() { self.ratio } else { Some(self.value) }
    }

    /// Payload, if there is one, and condition in words.
    pub fn of(&self) -> String {
        if self.payload == 0 { self.condition.clone() } else { format!("{}, {}", size(self.payload), self.condition) }
    }

    /// A row that another bench or test of this crate wrote (`cargo bench --bench parts -- --json FILE`); `None` for an object
    /// that is none.
    pub fn of_elsewhere(object: &Value) -> Option<Self> {
        let text = |name: &str| Some(object.get(name)?.as_str()?.to_owned());
        let number = |name: &str| object.get(name)?.as_f64();
        Some(Self {
            name: text("name")?,
            arm: text("arm")?,
            baseline: text("baseline"),
            condition: text("condition")?,
            messages: None,
            payload: object.get("payload").and_then(Value::as_u64).unwrap_or(0),
            value: number("value")?,
            least: number("low")?,
            most: number("high")?,
            unit: text("unit")?,
            ratio: number("ratio"),
            target: text("target"),
            met: object.get("met").and_then(Value::as_bool),
        })
    }
}
