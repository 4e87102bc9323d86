//! Plots as SVG that stands inside a page: lines over two axes, and bars. Colours are classes, which the page defines for light
//! and dark; no line is told by its colour alone: each has a dash of its own and its name at its end.
//!
//! Owns scales, ticks and shapes. Pure; must not know what is drawn.

use std::fmt::Write as _;

use super::page::escape;

/// Width and height of a plot, in its own units, and the room around it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Height of a bar with the room below it.
const BAR: f64 = 34.0;
/// The least distance between two names at the ends of lines.
const APART: f64 = 14.0;

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero, evenly.
    Linear,
    /// Each factor as wide.
    Log,
    /// Shares from 0 to below 1: each nine more as wide.
    Nines,
}

/// An axis: its scale and what its numbers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub scale: Scale,
    pub title: &'static str,
}

/// A line: its name and its points, ascending.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A bar: its name, the values at which its parts end, ascending, and what it says behind it.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub name: String,
    pub ends: Vec<f64>,
    pub text: String,
}

/// Values placed between two ends of an axis.
struct Placed {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Placed {
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let most = values.clone().fold(f64::MIN, f64::max);
        let least = values.filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
        let (low, high) = match scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Log if most > 0.0 && least < f64::MAX => {
                let (low, high) = (least.log10().floor(), most.log10().ceil());
                (10f64.powf(low), 10f64.powf(if high > low { high } else { low + 1.0 }))
            }
            Scale::Log => (0.1, 10.0),
            Scale::Nines => (0.0, most.clamp(0.9, 1.0 - 1e-12)),
        };
        Self { scale, low, high, from, to }
    }

    fn stretched(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(self.low).log10(),
            Scale::Nines => -(1.0 - value.min(self.high)).log10(),
        }
    }

    fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.stretched(self.low), self.stretched(self.high));
        self.from + (self.stretched(value) - low) / (high - low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let rough = self.high / 5.0;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * power).into_iter().find(|step| *step >= rough);
                let step = step.unwrap_or(power * 10.0);
                (0..=10).map(|count| f64::from(count) * step).take_while(|tick| *tick <= self.high).collect()
            }
            Scale::Log => {
                let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
                let between: &[f64] = if high - low > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decade = |power: i32| between.iter().map(move |by| by * 10f64.powi(power));
                (low..=high).flat_map(decade).filter(|tick| *tick <= self.high * 1.001).collect()
            }
            Scale::Nines => {
                let nines = (1..=9).map(|nines| 1.0 - 0.1f64.powi(nines));
                [0.0, 0.5].into_iter().chain(nines).filter(|tick| *tick <= self.high + 1e-12).collect()
            }
        }
    }

    fn label(&self, tick: f64) -> String {
        match self.scale {
            Scale::Nines => {
                let digits = (-(1.0 - tick).log10()).round() as usize;
                format!("p{:.*}", digits.saturating_sub(2), tick * 100.0)
            }
            _ => number(tick),
        }
    }
}

/// A number with as many digits as it needs.
pub(super) fn number(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn open(id: &str, title: &str, text: &str, height: f64) -> String {
    let (title, text) = (escape(title), escape(text));
    format!(
        "<svg id=\"{id}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-title {id}-text\">\
         <title id=\"{id}-title\">{title}</title><desc id=\"{id}-text\">{text}</desc>\n"
    )
}

/// Writing to a string does not fail.
fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text);
    svg.push('\n');
}

/// Lines over two axes; `text` says in words what they show. Nothing to draw is said.
pub(super) fn lines(id: &str, title: &str, text: &str, x: Axis, y: Axis, lines: &[Line]) -> String {
    if lines.iter().all(|line| line.points.is_empty()) {
        return "<p>There is nothing to draw.</p>\n".to_owned();
    }
    let points = lines.iter().flat_map(|line| line.points.iter());
    let across = Placed::new(x.scale, points.clone().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let up = Placed::new(y.scale, points.map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = open(id, title, text, HEIGHT);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for tick in up.ticks() {
        let (at, label) = (up.at(tick), up.label(tick));
        put(&mut svg, format_args!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
        put(&mut svg, format_args!("<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>", LEFT - 8.0, at + 4.0));
    }
    for tick in across.ticks() {
        let (at, label) = (across.at(tick), across.label(tick));
        put(&mut svg, format_args!("<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/>"));
        put(&mut svg, format_args!("<text class=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>", bottom + 18.0));
    }
    put(
        &mut svg,
        format_args!(
            "<text class=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 6.0,
            escape(x.title)
        ),
    );
    let middle = f64::midpoint(TOP, bottom);
    put(
        &mut svg,
        format_args!(
            "<text class=\"middle\" transform=\"translate(14 {middle:.1}) rotate(-90)\">{}</text>",
            escape(y.title)
        ),
    );
    let mut names = Vec::new();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
        let name = escape(&line.name);
        let place = |point: &(f64, f64)| format!("{:.1} {:.1}", across.at(point.0), up.at(point.1));
        let path: Vec<_> = line.points.iter().map(place).collect();
        put(
            &mut svg,
            format_args!("<path class=\"line s{number}\" d=\"M{}\"><title>{name}</title></path>", path.join("L")),
        );
        if let Some(last) = line.points.last() {
            names.push((up.at(last.1), across.at(last.0), number, name));
        }
    }
    // Names stand beside their lines' ends, from the top down, and never on each other.
    names.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut free = TOP;
    for (at, end, number, name) in names {
        let at = at.max(free);
        free = at + APART;
        put(
            &mut svg,
            format_args!(
                "<text class=\"name t{number}\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
                end.min(right) + 6.0,
                at + 4.0
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Bars from zero, each in parts that get paler; `text` says in words what they show.
pub(super) fn bars(id: &str, title: &str, text: &str, axis: &'static str, bars: &[Bar]) -> String {
    let height = TOP + BAR * bars.len() as f64 + BOTTOM;
    // What stands behind the longest bar has to have room: about so wide is a character in most fonts.
    let longest = bars.iter().map(|bar| bar.text.chars().count() as f64 * 6.6).fold(0.0, f64::max);
    let (from, to) = (96.0, (WIDTH - 16.0 - longest).max(WIDTH / 2.0));
    let across = Placed::new(Scale::Linear, bars.iter().flat_map(|bar| bar.ends.iter().copied()), from, to);
    let mut svg = open(id, title, text, height);
    let bottom = height - BOTTOM;
    for tick in across.ticks() {
        let (at, label) = (across.at(tick), across.label(tick));
        put(&mut svg, format_args!("<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom:.1}\"/>"));
        put(&mut svg, format_args!("<text class=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>", bottom + 18.0));
    }
    let middle = f64::midpoint(from, to);
    put(&mut svg, format_args!("<text class=\"middle\" x=\"{middle:.1}\" y=\"{:.1}\">{axis}</text>", height - 6.0));
    for (number, bar) in bars.iter().enumerate() {
        let top = TOP + BAR * number as f64 + 6.0;
        let (name, words, low) = (escape(&bar.name), escape(&bar.text), top + 15.0);
        put(&mut svg, format_args!("<text class=\"end\" x=\"{:.1}\" y=\"{low:.1}\">{name}</text>", from - 8.0));
        let mut begin = across.at(0.0);
        for (part, end) in bar.ends.iter().enumerate() {
            let end = across.at(*end).max(begin);
            let wide = end - begin;
            put(
                &mut svg,
                format_args!(
                    "<rect class=\"bar p{part} f{number}\" x=\"{begin:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"22\">\
                     <title>{name}: {words}</title></rect>"
                ),
            );
            begin = end;
        }
        put(&mut svg, format_args!("<text x=\"{:.1}\" y=\"{low:.1}\">{words}</text>", begin + 8.0));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis { scale, title: "x" }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let linear = Placed::new(Scale::Linear, [3.0, 870.0].into_iter(), 0.0, 100.0);
        assert_eq!(linear.ticks(), [0.0, 200.0, 400.0, 600.0, 800.0]);
        let log = Placed::new(Scale::Log, [0.7, 45.0].into_iter(), 0.0, 100.0);
        assert_eq!(
            log.ticks().iter().map(|tick| number(*tick)).collect::<Vec<_>>().join(" "),
            "0.1 0.2 0.5 1 2 5 10 20 50 100"
        );
        let nines = Placed::new(Scale::Nines, [0.0, 0.9995].into_iter(), 0.0, 100.0);
        let labels: Vec<_> = nines.ticks().into_iter().map(|tick| nines.label(tick)).collect();
        assert_eq!(labels, ["p0", "p50", "p90", "p99", "p99.9"]);
        for placed in [&linear, &log, &nines] {
            assert!(placed.ticks().iter().all(|tick| (-0.1..=100.1).contains(&placed.at(*tick))));
        }
    }

    #[test]
    fn values_keep_their_order_and_stay_inside() {
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            let values: Vec<f64> = (0..100).map(|step| f64::from(step) / 100.0).collect();
            let placed = Placed::new(scale, values.iter().copied(), 10.0, 90.0);
            let places: Vec<f64> = values.iter().map(|value| placed.at(*value)).collect();
            assert!(places.is_sorted() && places.iter().all(|at| (9.9..=90.1).contains(at)), "{scale:?}: {places:?}");
        }
    }

    #[test]
    fn what_stands_behind_the_longest_bar_has_room() {
        let slow = "127738.1 ms, 130097.4 ms, 130933.0 ms";
        for text in ["1.5 ms", slow] {
            let bar = Bar { name: "staged".to_owned(), ends: vec![1.0, 2.0, 3.0], text: text.to_owned() };
            let svg = bars("id", "title", "text", "ms", &[bar]);
            let (before, _) = svg.rsplit_once(&format!(">{text}</text>")).unwrap();
            let at: f64 = before.rsplit_once("x=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap();
            assert!(at + 6.0 * text.len() as f64 <= WIDTH, "{text} at {at}");
            assert!(at > WIDTH / 2.0, "the bar has room, too: {at}");
        }
    }

    #[test]
    fn strange_values_draw_something() {
        let one = |points: Vec<(f64, f64)>| vec![Line { name: "<a>".to_owned(), points }];
        for points in [vec![(0.0, 0.0)], vec![(0.0, 5.0), (0.5, 5.0)], vec![(0.999_999_999_999_9, 1e-9)]] {
            for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
                let svg = lines("id", "title", "text", axis(scale), axis(Scale::Log), &one(points.clone()));
                assert!(svg.contains("<path class=\"line s0\"") && svg.contains("&lt;a&gt;"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{scale:?} {points:?}: {svg}");
            }
        }
        assert!(lines("id", "title", "text", axis(Scale::Log), axis(Scale::Log), &one(Vec::new())).contains("nothing"));
        let bar = Bar { name: "b".to_owned(), ends: vec![0.0, 0.0], text: "-".to_owned() };
        assert!(!bars("id", "title", "text", "ms", &[bar]).contains("NaN"));
    }
}
