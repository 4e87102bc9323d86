//! gRPC: generated code, conversions, and TLS whose peers the directory names. Must not decide anything.
