//! Fates: the shape of a log entry, the leader's tally of reports, and `apply`, the only place where a fate is made (R4).
//! Must not do I/O, ask the time or read configuration.
