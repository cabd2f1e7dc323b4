//! The certificate and the key of the HTTP server, which are reloaded when they are renewed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_openssl::OpenSSLConfig;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{self, AlpnError, SslAcceptor, SslMethod};
use openssl::x509::X509;

use crate::bounded;
use crate::config::TlsFiles;

/// How often the files are checked. Their contents are compared, so that a renewal by symlink (Kubernetes) is noticed
/// too.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A certificate and its matching key.
pub struct Tls {
    files: TlsFiles,
    pem: Pem,
    config: OpenSSLConfig,
}

/// The reason why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{setting} = {path:?}: {problem}")]
    File {
        setting: &'static str,
        path: std::path::PathBuf,
        problem: String,
    },
    #[error("http.tls_certificate and http.tls_key cannot be used together: {0}")]
    Pair(ErrorStack),
}

#[derive(PartialEq)]
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`], which names the setting to correct.
    pub fn load(files: TlsFiles) -> Result<Tls, TlsError> {
        let pem = Pem::read(&files)?;
        let config = server(&files, &pem)?;
        Ok(Tls { files, pem, config })
    }

    pub(super) fn config(&self) -> OpenSSLConfig {
        self.config.clone()
    }

    /// Uses renewed files for new connections. Keeps the old ones while the new ones are invalid.
    pub(super) async fn renew(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(pem) = Pem::read(&self.files) else {
                continue; // being replaced
            };
            if pem == self.pem {
                continue;
            }
            match server(&self.files, &pem) {
                Ok(renewed) => {
                    self.config.reload_from_acceptor(renewed.get_inner());
                    tracing::info!("HTTP uses the renewed certificate");
                }
                Err(e) => tracing::warn!(
                    "the renewed certificate is not used, and the old one stays in use: {e}"
                ),
            }
            self.pem = pem;
        }
    }
}

impl Pem {
    fn read(files: &TlsFiles) -> Result<Pem, TlsError> {
        let read = |setting, path: &Path| {
            bounded::read(path, bounded::TEXT).map_err(|e| bad_file(setting, path, e))
        };
        Ok(Pem {
            certificate: read(CERTIFICATE, &files.certificate)?,
            key: read(KEY, &files.key)?,
        })
    }
}

const CERTIFICATE: &str = "http.tls_certificate";
const KEY: &str = "http.tls_key";

fn bad_file(setting: &'static str, path: &Path, problem: impl ToString) -> TlsError {
    TlsError::File {
        setting,
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// Builds the TLS settings, with TLS 1.3 only (Mozilla's modern profile).
fn server(files: &TlsFiles, pem: &Pem) -> Result<OpenSSLConfig, TlsError> {
    let chain = X509::stack_from_pem(&pem.certificate).unwrap_or_default();
    let Some((certificate, issuers)) = chain.split_first() else {
        return Err(bad_file(
            CERTIFICATE,
            &files.certificate,
            "it is not a PEM certificate",
        ));
    };
    // The passphrase is empty, because OpenSSL would otherwise ask for one at the terminal.
    let key = PKey::private_key_from_pem_callback(&pem.key, |_| Ok(0)).map_err(|_| {
        bad_file(
            KEY,
            &files.key,
            "it is not a PEM key, or it has a passphrase",
        )
    })?;
    let build = || -> Result<OpenSSLConfig, ErrorStack> {
        let mut server = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server())?;
        server.set_certificate(certificate)?;
        for issuer in issuers {
            server.add_extra_chain_cert(issuer.clone())?;
        }
        server.set_private_key(&key)?;
        server.check_private_key()?;
        // Clients must not choose HTTP/2. A client that offers only HTTP/2 gets an alert at once.
        server.set_alpn_select_callback(|_, offered| {
            ssl::select_next_proto(b"\x08http/1.1", offered).ok_or(AlpnError::ALERT_FATAL)
        });
        Ok(OpenSSLConfig::from_acceptor(Arc::new(server.build())))
    };
    build().map_err(TlsError::Pair)
}
