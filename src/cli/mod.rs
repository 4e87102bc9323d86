//! The command line: one file per command. Data goes to stdout, logs and progress to stderr.
