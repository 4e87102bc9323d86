//! Collecting segments until a stripe can be rebuilt, within limits, and knowing which offsets are done (design, section 6).
//! Must not do I/O: verified segments and time come in, actions go out.
