//! The stop signal: asked for once, seen by every thread.

use std::sync::Arc;

use tokio::sync::watch;

/// Cloned into every stage. Once requested it stays so.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown {
            requested: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Shutdown {
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Resolves once a stop is requested.
    pub async fn requested(&self) {
        let mut seen = self.requested.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = seen.wait_for(|requested| *requested).await;
    }

    /// Turns SIGTERM and Ctrl-C into a request; the second one ends the process at once. They are caught from this call
    /// on, which wants the context of a runtime.
    ///
    /// # Errors
    /// When the system does not let them be caught.
    pub fn on_signals(self) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if self.is_requested() {
                    tracing::warn!(
                        "second signal: stopping without waiting for verdicts in flight"
                    );
                    #[allow(
                        clippy::disallowed_methods,
                        reason = "the second signal asks for just that"
                    )]
                    std::process::exit(130);
                }
                tracing::info!(
                    "stopping: draining what is in flight; signal again to stop at once"
                );
                self.request();
            }
        })
    }
}
