//! The signed list of who exists, their public keys, who may send and who may read (design, section 9).
//! Owns the file's format, its checks and the look-ups in it. Must not hold secrets.
