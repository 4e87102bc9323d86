//! A chart as SVG: marks on one axis, a line of them for each thing that is shown, lines in groups. Text out, without anything from
//! elsewhere: no script, no style sheet, no font, a background of its own.
//!
//! Must not know what the figures are.

use super::table::number;

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

/// What stands at a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// A bar from the axis' beginning; for linear scales.
    Bar,
    /// A filled circle.
    Dot,
    /// A circle.
    Ring,
    /// A short upright stroke, to hold the others against.
    Stroke,
}

/// What colour a line has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tone {
    /// What the chart is about.
    Ours,
    /// What it stands beside.
    Other,
    /// As it must be.
    Good,
    /// Not as it must be.
    Bad,
}

impl Tone {
    fn colour(self) -> &'static str {
        match self {
            Self::Ours => "#1f5fa8",
            Self::Other => "#66717d",
            Self::Good => "#1b6e3c",
            Self::Bad => "#b00020",
        }
    }

    fn bold(self) -> bool {
        self == Self::Ours
    }
}

/// One thing, and what stands on its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// On the left.
    pub label: String,
    /// In the middle.
    pub marks: Vec<(Mark, f64)>,
    /// On the right: the values in numbers.
    pub note: String,
    /// Of the marks and the note.
    pub tone: Tone,
}

/// Lines that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Above them; nothing for none.
    pub title: String,
    /// From top to bottom.
    pub lines: Vec<Line>,
}

/// Groups over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above all.
    pub title: String,
    /// What the marks mean.
    pub legend: Vec<(Mark, &'static str)>,
    /// What the axis counts, and in which unit.
    pub axis: &'static str,
    /// Of the axis.
    pub scale: Scale,
    /// A value that is told from all others by an upright line, and what it is.
    pub reference: Option<(f64, &'static str)>,
    /// Of the notes.
    pub notes: &'static str,
    /// From top to bottom.
    pub groups: Vec<Group>,
}

/// All coordinates are pixels at the width for which they are meant.
const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
const STEP: f64 = 19.0;
/// About how wide a character of 12 pixels is in a wide font, and a bold one: which font it will be is not known here.
const CHARACTER: f64 = 6.7;
const BOLD: f64 = 7.6;

/// Text as it may stand in SVG and HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// How wide the widest is, with its tone; no more than `most`.
fn widest<'a>(texts: impl Iterator<Item = (&'a str, Tone)>, most: f64) -> f64 {
    let wide = |(text, tone): (&str, Tone)| text.chars().count() as f64 * if tone.bold() { BOLD } else { CHARACTER };
    texts.map(wide).fold(0.0, f64::max).min(most)
}

/// From values to places.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
    left: f64,
    right: f64,
}

impl Axis {
    /// From the first power of ten at or below all values (or zero) to the end of the last step.
    fn new(scale: Scale, values: &[f64], left: f64, right: f64) -> Self {
        let fits = |value: &f64| value.is_finite() && *value > 0.0;
        let least = values.iter().copied().filter(fits).fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().filter(fits).fold(0.0, f64::max);
        let (least, most) = match (scale, most > 0.0) {
            (_, false) => (if scale == Scale::Linear { 0.0 } else { 0.1 }, 1.0),
            (Scale::Linear, true) => (0.0, (most / step(most)).ceil() * step(most)),
            (Scale::Logarithmic, true) => {
                let (least, most) = (least.log10().floor(), most.log10().ceil());
                (10f64.powf(least), 10f64.powf(most.max(least + 1.0)))
            }
        };
        Self { scale, least, most, left, right }
    }

    /// What is beyond an end, or no number, stands at that end.
    fn place(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => value / self.most,
            Scale::Logarithmic => (value / self.least).log10() / (self.most / self.least).log10(),
        };
        self.left + (self.right - self.left) * if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) }
    }

    /// Values that are named, and those between them which have a line alone.
    fn ticks(&self) -> (Vec<f64>, Vec<f64>) {
        match self.scale {
            Scale::Linear => {
                let step = step(self.most);
                let count = (self.most / step).round() as usize;
                ((0..=count).map(|place| place as f64 * step).collect(), Vec::new())
            }
            Scale::Logarithmic => {
                let (first, last) = (self.least.log10().round() as i32, self.most.log10().round() as i32);
                let between = (first..last).flat_map(|power| [2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
                let powers = (first..=last).map(|power| 10f64.powi(power)).collect();
                // On a short axis all of them have a name.
                if last - first > 2 {
                    (powers, between.collect())
                } else {
                    (between.chain(powers).collect(), Vec::new())
                }
            }
        }
    }
}

/// A step of 1, 2 or 5 times a power of ten, of which at most six reach the value.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / 5.0).log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power * 6.0 >= most);
    digit.unwrap_or(10.0) * power
}

/// A tick's name: `0.1`, `20`, `10,000`.
fn tick(value: f64) -> String {
    if value < 10.0 {
        let text = format!("{value:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let comma = |(place, digit): (usize, char)| {
        let before = place > 0 && (digits.len() - place).is_multiple_of(3);
        before.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
}

fn text(x: f64, y: f64, rest: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\"{rest}>{}</text>\n", escape(words))
}

fn stroke(x: (f64, f64), y: (f64, f64), rest: &str) -> String {
    format!("<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" {rest}/>\n", x.0, x.1, y.0, y.1)
}

fn mark(mark: Mark, axis: &Axis, value: f64, y: f64, colour: &str) -> String {
    let x = axis.place(value);
    match mark {
        Mark::Bar => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>\n",
            axis.left,
            y - 6.0,
            x - axis.left
        ),
        Mark::Dot => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>\n"),
        Mark::Ring => format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#ffffff\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"
        ),
        Mark::Stroke => stroke((x, x), (y - 7.0, y + 7.0), &format!("stroke=\"{colour}\" stroke-width=\"2\"")),
    }
}

impl Chart {
    /// How many things it shows.
    pub fn lines(&self) -> usize {
        self.groups.iter().map(|group| group.lines.len()).sum()
    }

    /// The picture, 800 pixels wide and as high as it must be.
    pub fn svg(&self) -> String {
        let lines = || self.groups.iter().flat_map(|group| &group.lines);
        let labels = widest(lines().map(|line| (line.label.as_str(), line.tone)), WIDTH / 2.0);
        let notes = lines().map(|line| (line.note.as_str(), line.tone)).chain([(self.notes, Tone::Other)]);
        let notes = widest(notes, WIDTH / 4.0);
        let mut values: Vec<f64> = lines().flat_map(|line| line.marks.iter().map(|(_, value)| *value)).collect();
        values.extend(self.reference.map(|(value, _)| value));
        let axis = Axis::new(self.scale, &values, MARGIN + labels + 12.0, WIDTH - MARGIN - notes - 30.0);
        let mut drawn = text(MARGIN, 28.0, " font-size=\"15\" font-weight=\"600\"", &self.title);
        let mut y = 28.0;
        if !self.legend.is_empty() {
            y += 22.0;
            drawn += &self.explained(y - 4.0);
        }
        y += 22.0;
        let end = " text-anchor=\"end\"";
        drawn += &text(WIDTH - MARGIN, y, &format!("{end} fill=\"#4a525a\""), self.notes);
        drawn += &ticks_named(&axis, y);
        let top = y + 8.0;
        let mut body = String::new();
        y = top;
        for group in &self.groups {
            if !group.title.is_empty() {
                y += STEP + 8.0;
                body += &text(MARGIN, y, " font-weight=\"600\"", &group.title);
            }
            for line in &group.lines {
                y += STEP;
                body += &line.drawn(&axis, y);
            }
        }
        let bottom = y + 10.0;
        drawn += &self.grid(&axis, top, bottom);
        drawn += &body;
        drawn += &ticks_named(&axis, bottom + 16.0);
        let middle = (axis.left + axis.right) / 2.0;
        drawn += &text(middle, bottom + 36.0, " text-anchor=\"middle\" fill=\"#4a525a\"", self.axis);
        let (height, title) = (bottom + 50.0, escape(&self.title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"12\" \
             fill=\"#1c2126\">\n<title>{title}</title>\n\
             <rect x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"4\" fill=\"#ffffff\" stroke=\"#d0d6dc\"/>\n{drawn}</svg>\n",
            WIDTH - 1.0,
            height - 1.0
        )
    }

    /// What the marks mean, side by side.
    fn explained(&self, y: f64) -> String {
        let mut x = MARGIN + 6.0;
        let mut drawn = String::new();
        for (kind, words) in &self.legend {
            // An axis on which the one value has this place.
            let here = Axis { scale: Scale::Linear, least: 0.0, most: 1.0, left: x - 6.0, right: x + 6.0 };
            drawn += &mark(*kind, &here, 0.5, y, Tone::Other.colour());
            drawn += &text(x + 12.0, y + 4.0, " fill=\"#4a525a\"", words);
            x += 38.0 + words.chars().count() as f64 * CHARACTER;
        }
        drawn
    }

    fn grid(&self, axis: &Axis, top: f64, bottom: f64) -> String {
        let (named, between) = axis.ticks();
        let line = |values: Vec<f64>, colour: &str| {
            let line = |value: f64| {
                let x = axis.place(value);
                stroke((x, x), (top, bottom), &format!("stroke=\"{colour}\""))
            };
            values.into_iter().map(line).collect::<String>()
        };
        let reference = self.reference.map_or(String::new(), |(value, words)| {
            let x = axis.place(value);
            stroke((x, x), (top, bottom), "stroke=\"#1c2126\" stroke-width=\"1.5\" stroke-dasharray=\"5 3\"")
                + &text(x + 4.0, top + 11.0, " font-weight=\"600\"", words)
        });
        line(between, "#eef1f4") + &line(named, "#dde2e7") + &reference
    }
}

impl Line {
    fn drawn(&self, axis: &Axis, y: f64) -> String {
        let colour = self.tone.colour();
        let own = || self.marks.iter().filter(|(kind, _)| *kind != Mark::Stroke);
        let places = || own().map(|(_, value)| axis.place(*value));
        let (from, to) = (places().fold(f64::INFINITY, f64::min), places().fold(0.0, f64::max));
        let held = (own().count() > 1)
            .then(|| stroke((from, to), (y, y), &format!("stroke=\"{colour}\" stroke-width=\"1.5\"")));
        let marks = self.marks.iter().map(|(kind, value)| mark(*kind, axis, *value, y, colour));
        let bold = if self.tone.bold() { " font-weight=\"600\"" } else { "" };
        let label = text(axis.left - 12.0, y + 4.0, &format!(" text-anchor=\"end\"{bold}"), &self.label);
        let note = format!(" text-anchor=\"end\" fill=\"{colour}\"{bold}");
        label
            + &held.unwrap_or_default()
            + &marks.collect::<String>()
            + &text(WIDTH - MARGIN, y + 4.0, &note, &self.note)
    }
}

fn ticks_named(axis: &Axis, y: f64) -> String {
    let name = |value: f64| text(axis.place(value), y, " text-anchor=\"middle\" fill=\"#4a525a\"", &tick(value));
    axis.ticks().0.into_iter().map(name).collect()
}

/// Values in numbers, as a note shows them: `1.30 / 12.0`.
pub fn numbers(values: &[f64]) -> String {
    values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(" / ")
}
