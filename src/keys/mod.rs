//! Secret keys: files, key rings, and what a holder can do with them (design, section 3.7).
//! Must not show a secret in Debug, logs or errors.
