//! Sealing and opening: HPKE suites, the envelope, the STREAM, transactions (design, section 3).
//! Must not know how sealed bytes are cut or carried.

pub mod suite;
