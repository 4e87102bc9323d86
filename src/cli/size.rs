//! Sizes as people write them.
//!
//! Owns reading and writing them. Must not know what has the size.

use std::fmt;
use std::str::FromStr;

use crate::core::limits;

/// A number of bytes, written `64MiB`, `64M`, `1KiB` or `1000000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub u64);

/// Units, largest first.
const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text.strip_prefix(digits).unwrap_or_default();
        let shift = match unit {
            "" | "B" => Some(0),
            unit => UNITS
                .iter()
                .find(|(name, _)| *name == unit || name.strip_suffix("iB") == Some(unit))
                .map(|(_, shift)| *shift),
        };
        let bytes = digits.parse::<u64>().ok().zip(shift).and_then(|(count, shift)| count.checked_mul(1 << shift));
        match bytes {
            Some(bytes) if bytes <= limits::PAYLOAD_BYTES => Ok(Self(bytes)),
            Some(_) => Err(format!("a transaction has at most {}", Size(limits::PAYLOAD_BYTES))),
            None => Err("expected a number of bytes, for example 64MiB, 100KiB (not KB) or 1000".to_owned()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match whole {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for text in ["0B", "1B", "1023B", "1KiB", "64MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("1000".parse(), Ok(Size(1000)));
        assert_eq!("8M".parse(), Ok(Size(8 << 20)));
        assert_eq!("1024KiB".parse(), Ok(Size(1 << 20)));
        for text in ["", "MiB", "1MB", "-1", "1 KiB", "99999999999999GiB", "1.5MiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("999999GiB".parse::<Size>().unwrap_err().contains("at most"));
    }
}
