//! Quantiles, medians, spreads, slopes and exponents.

/// A value and how far it strayed: the lowest and the highest of its blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The figure itself.
    pub value: f64,
    /// The lowest of the blocks.
    pub least: f64,
    /// The highest of the blocks.
    pub most: f64,
}

/// The value that a share `q` (0 to 1) of all values does not exceed (nearest rank); `None` without values.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// The middle of all values, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// The quantile of all blocks' values together, with the lowest and highest of the single blocks.
pub fn quantile_of_blocks(blocks: &[Vec<f64>], q: f64) -> Option<Spread> {
    let all: Vec<f64> = blocks.iter().flatten().copied().collect();
    let value = quantile(&all, q)?;
    let single: Vec<f64> = blocks.iter().filter_map(|block| quantile(block, q)).collect();
    Some(spread(value, &single))
}

/// The median of some runs with their extremes.
pub fn median_of_runs(values: &[f64]) -> Option<Spread> {
    Some(spread(median(values)?, values))
}

fn spread(value: f64, single: &[f64]) -> Spread {
    let least = single.iter().copied().fold(f64::INFINITY, f64::min);
    let most = single.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Spread { value, least, most }
}

/// How a cost grows: the exponent e of cost = c * size^e that fits best (least squares of the logarithms). 0 is flat, 1 is in
/// proportion. `None` with fewer than two different sizes.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    slope(&logs)
}

/// The slope of the straight line that fits best (least squares). `None` with fewer than two different places.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let across: f64 = points.iter().map(|point| (point.0 - x) * (point.0 - x)).sum();
    let along: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (across > 0.0).then(|| along / across)
}
