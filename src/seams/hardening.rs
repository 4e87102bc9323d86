//! What a process that holds secrets asks of the system.

use std::io;

/// Turns core dumps off for this process and its children: a dump would hold keys and opened payloads. On Linux the
/// process also becomes non-dumpable, which keeps other processes of the same user from attaching to it.
///
/// Errors: the system's; secrets are then no worse kept than in any other process, so callers may go on. A failure is
/// also logged as a warning.
pub fn core_dumps_off() -> io::Result<()> {
    let outcome = turn_off();
    if let Err(error) = &outcome {
        tracing::warn!(%error, "core dumps stay on: a crash could write keys to disk; set `ulimit -c 0`");
    }
    outcome
}

fn turn_off() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn core_dumps_are_off_afterwards() {
        super::core_dumps_off().unwrap();
        assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Core).current, Some(0));
    }
}
