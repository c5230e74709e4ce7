//! Tasks that have an owner.

use std::future::Future;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A group of tasks that ends as one: [`Tasks::shutdown`] (or dropping the last clone) cancels them,
/// and `shutdown` waits until the last has gone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    guard: std::sync::Arc<tokio_util::sync::DropGuard>,
    token: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        let token = CancellationToken::new();
        Tasks { tracker: TaskTracker::new(), guard: std::sync::Arc::new(token.clone().drop_guard()), token }
    }

    /// Runs `f` until it ends or the group does. A panic inside is logged with the task's name and
    /// ends only that task.
    pub fn spawn<F>(&self, name: &'static str, f: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        tracing::trace!(task = name, "spawn");
        self.tracker.spawn(async move { token.run_until_cancelled(f).await })
    }

    /// A token that is cancelled when the group ends; for loops that must clean up themselves.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs `f`, which watches [`Tasks::token`] itself and is waited for at shutdown.
    pub fn spawn_graceful<F>(&self, name: &'static str, f: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tracing::trace!(task = name, "spawn");
        self.tracker.spawn(f)
    }

    /// Resolves when the group was told to end.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Cancels all and waits for the last.
    pub async fn shutdown(&self) {
        let _keep = &self.guard;
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs blocking work off the runtime's threads.
pub async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(v) => v,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => std::future::pending().await, // the runtime is going away, and this task with it
    }
}

/// A named thread of the operating system, for loops that block by nature (the log, the engine).
pub fn thread<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_string()).spawn(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn shutdown_ends_every_task() {
        static DROPPED: AtomicBool = AtomicBool::new(false);
        struct Mark;
        impl Drop for Mark {
            fn drop(&mut self) {
                DROPPED.store(true, Ordering::SeqCst);
            }
        }
        let tasks = Tasks::new();
        tasks.spawn("forever", async {
            let _m = Mark;
            std::future::pending::<()>().await
        });
        tokio::task::yield_now().await;
        tasks.shutdown().await;
        assert!(DROPPED.load(Ordering::SeqCst));
    }
}
