//! The receiving node: collect, verify, gather, open, stage, report, commit, hold, acknowledge, serve.
