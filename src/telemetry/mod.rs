//! Logs, metrics and health pages. Must not see secrets or payloads.
