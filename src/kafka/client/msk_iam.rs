//! Creates sign-in tokens for Amazon MSK. A token is a signed connection request, written as a URL in base64. The URL
//! itself is never requested.

use std::io::Read as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::http_client;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use rdkafka::client::OAuthToken;
use reqsign_aws_core::{Credential, DefaultCredentialProvider};
use reqsign_core::{Context, Env, FileRead, HttpSend, OsEnv, ProvideCredential as _};
use tracing::subscriber::NoSubscriber;
use ureq::Agent;
use ureq::tls::RootCerts;

/// The longest lifetime that MSK accepts. AWS's own signers use it too.
const LIFETIME: Duration = Duration::from_secs(900);
/// The timeout of one request for credentials. The services that answer it are on this machine or in its region.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a file or response with credentials, which usually has a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;
const USER_AGENT: &str = concat!("residuald-", env!("CARGO_PKG_VERSION"));

/// Creates a token for the brokers in `region`. Looks for credentials in the places that AWS's tools use: the
/// environment, the shared files and their profiles, SSO, a web identity, the container, the instance.
pub(super) fn token(region: &str) -> Result<OAuthToken, String> {
    let credential = credential(OsEnv)?;
    sign_in(region, &credential, SystemTime::now())
}

fn credential(environment: impl Env) -> Result<Credential, String> {
    let context = Context::new()
        .with_env(environment)
        .with_file_read(Files)
        .with_http_send(Http::new());
    // Commands in a profile are never run.
    let chain = DefaultCredentialProvider::builder().no_process().build();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| e.to_string())?;
    let found = runtime.block_on(chain.provide_credential(&context));
    found.map_err(|e| format!("no AWS credentials: {e}"))?.ok_or_else(|| {
        "no AWS credentials found in the environment, the shared files, a web identity, the container or the instance".to_owned()
    })
}

fn sign_in(region: &str, credential: &Credential, now: SystemTime) -> Result<OAuthToken, String> {
    let url = format!("https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect");
    let identity = Credentials::new(
        &credential.access_key_id,
        &credential.secret_access_key,
        credential.session_token.clone(),
        None,
        "residuald",
    )
    .into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFETIME);
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kafka-cluster")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|e| e.to_string())?;
    let empty = SignableBody::Bytes(&[]);
    let request =
        SignableRequest::new("GET", &url, std::iter::empty(), empty).map_err(|e| e.to_string())?;
    let signed = without_log(|| sign(request, &parameters.into())).map_err(|e| e.to_string())?;
    let mut request = http::Request::get(&url)
        .body(())
        .map_err(|e| e.to_string())?;
    let (instructions, _) = signed.into_parts();
    instructions.apply_to_request_http1x(&mut request);
    // The user agent is not part of the signature. MSK writes it to its log.
    let signed = format!("{}&User-Agent={USER_AGENT}", request.uri());
    Ok(OAuthToken {
        token: BASE64_URL_SAFE_NO_PAD.encode(signed),
        principal_name: "residuald".to_owned(),
        lifetime_ms: end_of(credential, now)?,
    })
}

/// A token expires with its own lifetime or with its credential, whichever is earlier.
fn end_of(credential: &Credential, now: SystemTime) -> Result<i64, String> {
    let end = now + LIFETIME;
    let end = end.duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
    let end = i64::try_from(end.as_millis()).map_err(|e| e.to_string())?;
    let of_credential = credential.expires_in.map(|at| at.as_second() * 1000);
    Ok(of_credential.map_or(end, |of_credential| of_credential.min(end)))
}

/// Runs `body` with logging off, because at trace level these libraries log the secrets that they sign and send.
fn without_log<T>(body: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(NoSubscriber::default(), body)
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let failed = |e| reqsign_core::Error::unexpected(format!("{path}: {e}"));
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(bytes)
    }
}

#[derive(Debug)]
struct Http(Agent);

impl Http {
    fn new() -> Http {
        let agent = http_client::agent(RootCerts::PlatformVerifier, TIMEOUT)
            .user_agent(USER_AGENT)
            .build()
            .new_agent();
        Http(agent)
    }
}

impl HttpSend for Http {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let failed = |e: ureq::Error| reqsign_core::Error::unexpected(format!("{host}: {e}"));
        let request = request.map(|body| body.to_vec());
        let answer = without_log(|| {
            let (parts, mut body) = self.0.run(request)?.into_parts();
            let body = body.with_config().limit(MAX_BYTES).read_to_vec()?;
            Ok(http::Response::from_parts(parts, body.into()))
        });
        answer.map_err(failed)
    }
}

#[cfg(test)]
mod tests;
