//! Decides which clients get an answer: only those with the token or, without a configured token, only those on this
//! machine.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use openssl::sha::sha256;

use super::triage;
use crate::config::Secret;

/// Paths for an orchestrator's probes, which have no token and may use any host name.
const PROBES: [&str; 2] = ["/livez", "/readyz"];
/// Paths without records. A local Prometheus may request them by another host name.
const COUNTS: [&str; 1] = ["/metrics"];
/// Paths that are open to the network when there is no token.
const EXPOSED: [&str; 3] = ["/metrics", "/status", "/readyz"];

/// The rule for requests other than probes.
#[derive(Clone)]
pub enum Access {
    /// The request must carry the token.
    Token(Secret),
    /// The request must come from this machine, and its `Host` header must name this machine. A web page of another site that
    /// is open in a browser here could also send requests from this machine.
    Local,
    /// The address is open to the network, so no records are shown and nothing can be changed.
    Exposed,
}

impl Access {
    pub fn new(token: Option<Secret>, listen: SocketAddr) -> Access {
        match token {
            Some(token) => Access::Token(token),
            None if is_loopback(listen) => Access::Local,
            None => Access::Exposed,
        }
    }

    fn refusal(&self, request: &Request) -> Option<Response> {
        let path = request.uri().path();
        let is_page = triage::PAGE.contains(&path);
        match self {
            _ if PROBES.contains(&path) && !super::is_verbose(request.uri()) => None,
            Access::Token(_) if is_page => None,
            Access::Token(token) if brings(token, request.headers()) => None,
            Access::Token(_) => Some(unauthorised()),
            Access::Exposed if is_page || EXPOSED.contains(&path) => None,
            Access::Exposed => Some(forbidden(CLOSED)),
            Access::Local if COUNTS.contains(&path) => None,
            Access::Local if !names_this_machine(request) => Some(forbidden(OTHER_HOST)),
            Access::Local if !is_page && is_of_another_site(request.headers()) => {
                Some(forbidden(OTHER_SITE))
            }
            Access::Local => None,
        }
    }
}

const CLOSED: &str = "records and the log level are not open to the network: set http.token, or set http.listen to a loopback address\n";
const OTHER_HOST: &str = "without http.token only requests to localhost, 127.0.0.1 or [::1] are answered, but the Host header names another machine: use one of these names, or set http.token\n";
const OTHER_SITE: &str = "without http.token requests from pages of other sites are refused (headers Origin, Sec-Fetch-Site): open the triage page itself, or set http.token\n";

/// Lets a request pass, or refuses it with the reason.
pub async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.refusal(&request) {
        None => next.run(request).await,
        Some(refusal) => refusal,
    }
}

fn unauthorised() -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let how = "http.token is required: send the header Authorization: Bearer TOKEN\n";
    (StatusCode::UNAUTHORIZED, challenge, how).into_response()
}

fn forbidden(why: &'static str) -> Response {
    (StatusCode::FORBIDDEN, why).into_response()
}

/// Returns whether only this machine can reach the address.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn brings(token: &Secret, headers: &HeaderMap) -> bool {
    let value = headers.get(header::AUTHORIZATION);
    let Some((scheme, brought)) = value.and_then(|v| v.to_str().ok()?.split_once(' ')) else {
        return false;
    };
    // Hashes of equal length are compared in constant time, so that the time reveals nothing about the token.
    let (expected, brought) = (
        sha256(token.reveal().as_bytes()),
        sha256(brought.trim().as_bytes()),
    );
    scheme.eq_ignore_ascii_case("bearer") && openssl::memcmp::eq(&expected, &brought)
}

/// Returns whether every host name in the request belongs to this machine. A foreign domain may resolve to this machine
/// (DNS rebinding), and a browser would then treat pages of that domain as pages of this server.
fn names_this_machine(request: &Request) -> bool {
    let in_target = request.uri().authority().map(Authority::as_str);
    let mut in_headers = request.headers().get_all(header::HOST).iter().peekable();
    let named = in_target.is_some() || in_headers.peek().is_some();
    named
        && in_target.is_none_or(is_this_machine)
        && in_headers.all(|host| host.to_str().is_ok_and(is_this_machine))
}

fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// Returns whether a browser sent the request on behalf of another site's page.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let ours = |site: &HeaderValue| site == "same-origin" || site == "none";
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let mut origins = headers.get_all(header::ORIGIN).iter();
    !sites.all(ours) || !origins.all(|origin| is_own_origin(origin, headers))
}

fn is_own_origin(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
    match (origin, host) {
        (Some(("http" | "https", of)), Some(host)) => of.eq_ignore_ascii_case(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn refused(path: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        Access::Local.refusal(&request).is_some()
    }

    #[test]
    fn only_names_of_this_machine_are_answered_without_a_token() {
        for host in [
            "localhost",
            "LOCALHOST:9464",
            "localhost.",
            "localhost.:80",
            "127.0.0.1",
            "127.0.0.1:9464",
            "127.8.9.10:1",
            "[::1]",
            "[::1]:9464",
            "[::ffff:127.0.0.1]:9464",
            "[0:0:0:0:0:0:0:1]",
        ] {
            assert!(!refused("/anomalies", &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil@localhost",
            "10.0.0.1",
            "0.0.0.0:9464",
            "[::]",
            "[::2]:9464",
            "localhost evil",
            "localhost/evil",
            "localhost,evil.example",
        ] {
            for path in ["/anomalies", "/log-level", "/status", "/events", "/", "/x"] {
                assert!(refused(path, &[("host", host)]), "{path} {host}");
            }
            for path in ["/livez", "/readyz", "/metrics"] {
                assert!(!refused(path, &[("host", host)]), "{path} {host}");
            }
        }
        assert!(refused("/anomalies", &[]), "no Host at all");
        let both = [("host", "localhost"), ("host", "evil.example")];
        assert!(refused("/anomalies", &both));
        let local = [("host", "localhost")];
        assert!(refused("http://evil.example/anomalies", &local));
        assert!(!refused("http://localhost/anomalies", &local));
    }

    #[test]
    fn no_page_of_another_site_is_answered_without_a_token() {
        let ask = |path: &str, name: &str, value: &str| {
            refused(path, &[("host", "localhost:9464"), (name, value)])
        };
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "http://evil.example"),
            ("origin", "http://localhost:8080"),
            ("origin", "null"),
            ("origin", ""),
            ("origin", "ftp://localhost:9464"),
        ] {
            assert!(ask("/log-level", name, value), "{name}: {value}");
            assert!(ask("/anomalies/1/image", name, value), "{name}: {value}");
            assert!(!ask("/", name, value), "a link to the page itself");
        }
        for (name, value) in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://localhost:9464"),
            ("origin", "https://LOCALHOST:9464"),
        ] {
            assert!(!ask("/log-level", name, value), "{name}: {value}");
        }
    }
}
