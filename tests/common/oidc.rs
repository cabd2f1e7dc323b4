//! A tiny identity provider on loopback: tokens for those who know the secret, as OAuth 2.0's client credentials.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use serde_json::{Value, json};

pub const CLIENT: &str = "residuald-client";
pub const SECRET: &str = "oidc-s3cret";

/// Runs until the process ends.
#[derive(Clone)]
pub struct Issuer {
    /// Where tokens are had.
    pub url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    key: PKey<Private>,
    lifetime: Duration,
    audience: String,
    down: bool,
    issued: usize,
    refused: usize,
}

impl Issuer {
    /// Signs with the key of `kafka.sh start --secure`, whose folder is `cluster`.
    pub fn start(cluster: &Path, lifetime: Duration) -> Issuer {
        let key = std::fs::read(cluster.join("oauth/issuer.key")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            key: PKey::private_key_from_pem(&key).unwrap(),
            lifetime,
            audience: "residuald-tests".into(),
            down: false,
            issued: 0,
            refused: 0,
        }));
        let issuer = Issuer {
            url,
            state: state.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|stream| answer(&stream, &state));
            }
        });
        issuer
    }

    /// For whom tokens are from now on.
    pub fn audience(&self, audience: &str) {
        self.state.lock().unwrap().audience = audience.to_owned();
    }

    pub fn is_down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    /// How often it was asked while it was down.
    pub fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }

    pub fn issued(&self) -> usize {
        self.state.lock().unwrap().issued
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = value.to_owned();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut form = vec![0; length];
    reader.read_exact(&mut form)?;
    let mut state = state.lock().unwrap();
    let known = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{CLIENT}:{SECRET}"))
    );
    let (status, body) = if state.down {
        state.refused += 1;
        (503, json!({"error": "temporarily_unavailable"}))
    } else if authorization == known {
        state.issued += 1;
        (200, granted(&state))
    } else {
        (
            401,
            json!({"error": "invalid_client", "error_description": "the secret is wrong"}),
        )
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn granted(state: &State) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let claims = json!({
        "iss": "residuald-tests",
        "aud": state.audience,
        "sub": CLIENT,
        "scope": "kafka",
        "iat": now.as_secs(),
        "exp": (now + state.lifetime).as_secs_f64().ceil() as u64,
    });
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": "issuer"});
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}", part(&header), part(&claims));
    let mut signer = Signer::new(MessageDigest::sha256(), &state.key).unwrap();
    let signature = signer.sign_oneshot_to_vec(unsigned.as_bytes()).unwrap();
    let token = format!("{unsigned}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
    json!({"access_token": token, "token_type": "Bearer", "expires_in": state.lifetime.as_secs()})
}
