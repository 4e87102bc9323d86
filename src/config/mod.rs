//! Configuration: one file, environment overrides, flags; unknown fields refused (design, section 9).
