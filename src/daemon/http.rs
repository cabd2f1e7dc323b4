//! Runs the HTTP server on its own thread.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use crate::config;
use crate::failure::Failure;
use crate::http::{self, Access, Shown, Tls};
use crate::shutdown::Shutdown;

/// Binds the address and serves HTTP until `done` is requested. Returns the bound address and the thread.
pub fn serve(
    settings: &config::HttpSettings,
    connections: usize,
    shown: Shown,
    done: &Shutdown,
) -> Result<(SocketAddr, JoinHandle<()>), Failure> {
    let tls = settings.tls.clone().map(Tls::load).transpose();
    let tls = tls.map_err(Failure::config)?;
    let listen = settings.listen;
    let listener = TcpListener::bind(listen)
        .map_err(|e| Failure::config(format!("http.listen = \"{listen}\": {e}")))?;
    let address = listener.local_addr().map_err(Failure::internal)?;
    if settings.token.is_none() && !http::is_loopback(address) {
        tracing::warn!(
            "/metrics and /status are open to every client that can reach {address}, and the triage page shows no records: set http.token, or set http.listen to a loopback address"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let access = Access::new(settings.token.clone(), address);
    let done = done.clone();
    let thread = super::spawn_named("http", move || {
        runtime.block_on(async {
            let served = http::serve(listener, connections, tls, access, shown, done).await;
            if let Err(e) = served {
                tracing::error!("the HTTP server failed: {e}");
            }
        });
    });
    Ok((address, thread))
}
