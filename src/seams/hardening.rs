//! What a daemon asks of the system: that its secrets stay its own, and as many open files as it may have.

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

/// Raises this process's own bound on open files to the highest that the system allows it: every large transaction that is
/// half opened, and every reader, keeps a file open, and the usual bound of 1024 is soon reached.
///
/// Errors: the system's; the process can go on with the bound that it has. A failure is also logged as a warning.
pub fn open_files_most() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let bound = getrlimit(Resource::Nofile);
    let outcome = setrlimit(Resource::Nofile, Rlimit { current: bound.maximum, maximum: bound.maximum });
    if let Err(error) = &outcome {
        tracing::warn!(%error, most = bound.current, "the bound on open files stays; raise it with `ulimit -n`");
    }
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")] // others may allow less than they say
    #[test]
    fn the_bound_on_open_files_is_the_highest_afterwards() {
        super::open_files_most().unwrap();
        let bound = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(bound.current, bound.maximum);
    }

    #[test]
    fn core_dumps_are_off_afterwards() {
        super::core_dumps_off().unwrap();
        assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Core).current, Some(0));
    }
}
