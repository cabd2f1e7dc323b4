//! `[http]`: the address, TLS and the token of the HTTP server.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::secret::Secret;
use super::settings::Settings;

#[derive(Debug, Clone)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    /// If `None`, the server speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Required for every request except probes.
    pub token: Option<Secret>,
}

/// Paths of PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, then the intermediate certificates.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl HttpSettings {
    pub(super) fn parse(s: &mut Settings) -> HttpSettings {
        let listen = s.text("http.listen");
        let listen = listen.parse().unwrap_or_else(|_| {
            s.problem(format!(
                "http.listen = \"{listen}\": expected an address and a port, for instance \"127.0.0.1:9464\""
            ));
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let tls = match (
            s.optional_text("http.tls_certificate"),
            s.optional_text("http.tls_key"),
        ) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            _ => {
                s.problem("http.tls_certificate and http.tls_key must be set together: set both or neither".into());
                None
            }
        };
        let token = s.secret("http.token");
        HttpSettings { listen, tls, token }
    }
}
