//! Where long computations and blocking calls run, so that they never hold up the async threads.

/// Runs a job somewhere. The job says itself how its result comes back (usually a one-shot channel).
pub trait Work: Send + Sync + 'static {
    /// Starts `job`; it may run on another thread, at once or later.
    fn start(&self, job: Box<dyn FnOnce() + Send>);
}

/// The job was lost because the runtime is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was dropped: this process is shutting down")]
pub struct WorkLost;

impl WorkLost {
    /// Whether the same work can be done later: not in this process, which is ending.
    pub fn retryable(&self) -> bool {
        false
    }
}

impl dyn Work {
    /// Runs `job` and gives its result. Errors: [`WorkLost`] when the runtime ends first (or the job panicked).
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, WorkLost> {
        let (answer, result) = tokio::sync::oneshot::channel();
        self.start(Box::new(move || {
            // A caller that stopped waiting does not need the result.
            let _ = answer.send(job());
        }));
        result.await.map_err(|_| WorkLost)
    }
}

/// tokio's pool for blocking work.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolWork;

impl Work for PoolWork {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(job);
    }
}

/// At once, on the caller's thread: tests and simulation see one order.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineWork;

impl Work for InlineWork {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
