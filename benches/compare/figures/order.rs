//! In which order the arms send: rotated from round to round, so that each arm follows each other one equally often and none
//! has a better place (a Williams design, a balanced Latin square).

/// The order of `arms` arms in this round. Over `arms` rounds (twice as many for an odd number) every arm stands in every place
/// and follows every other one equally often.
pub fn order(arms: usize, round: usize) -> Vec<usize> {
    if arms == 0 {
        return Vec::new();
    }
    // First, second, last, third, last but one, ...
    let zigzag = (0..arms).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { (arms - place / 2) % arms });
    let mut row: Vec<usize> = zigzag.map(|arm| (arm + round) % arms).collect();
    if arms % 2 == 1 && (round / arms) % 2 == 1 {
        row.reverse();
    }
    row
}
