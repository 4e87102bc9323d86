//! gRPC over real TLS on loopback: who is let in, as whom, and what is refused.

mod calls;
mod impostors;
mod world;
