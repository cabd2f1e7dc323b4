use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use reqsign_core::StaticEnv;
use reqsign_core::time::Timestamp;

use super::*;

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2026-03-09T06:00:00Z
const NOW: u64 = 1_773_036_000;

fn credential_with(session_token: Option<&str>) -> Credential {
    Credential {
        access_key_id: KEY.into(),
        secret_access_key: SECRET.into(),
        session_token: session_token.map(str::to_owned),
        expires_in: None,
    }
}

fn signed(credential: &Credential) -> OAuthToken {
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    sign_in("eu-central-1", credential, now).unwrap()
}

/// The URL in a token, split into base and query.
fn address(token: &OAuthToken) -> (String, BTreeMap<String, String>) {
    let address = BASE64_URL_SAFE_NO_PAD.decode(&token.token).unwrap();
    let address = String::from_utf8(address).unwrap();
    let (base, query) = address.split_once('?').unwrap();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    (base.to_owned(), query.split('&').map(pair).collect())
}

/// The signatures come from AWS's own aws-msk-iam-sasl-signer-python 1.0.2 for the same time and credentials.
#[test]
fn a_token_equals_that_of_awss_own_signer() {
    let session = "IQoJ/b3JpZ2luX2VjEXAMPLE+token==";
    for (session, signature) in [
        (
            None,
            "dab381a1b73991248c2c0dfff175c37a4bb99d4105a3e7c65a87d4cd120a8d97",
        ),
        (
            Some(session),
            "b31295acc3b890679db35489167cccabf48e69d078e9ea2ccc9d1569871efff7",
        ),
    ] {
        let token = signed(&credential_with(session));
        let (base, query) = address(&token);
        assert_eq!(base, "https://kafka.eu-central-1.amazonaws.com/");
        let mut expected = BTreeMap::from([
            ("Action", "kafka-cluster%3AConnect"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            (
                "X-Amz-Credential",
                "AKIDEXAMPLE%2F20260309%2Feu-central-1%2Fkafka-cluster%2Faws4_request",
            ),
            ("X-Amz-Date", "20260309T060000Z"),
            ("X-Amz-Expires", "900"),
            ("X-Amz-SignedHeaders", "host"),
            ("X-Amz-Signature", signature),
            ("User-Agent", USER_AGENT),
        ]);
        if session.is_some() {
            let encoded = "IQoJ%2Fb3JpZ2luX2VjEXAMPLE%2Btoken%3D%3D";
            expected.insert("X-Amz-Security-Token", encoded);
        }
        let query: BTreeMap<&str, &str> = query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(query, expected);
        assert_eq!(token.lifetime_ms, (NOW as i64 + 900) * 1000);
    }
}

#[test]
fn a_token_ends_with_its_credential() {
    let mut credential = credential_with(Some("session"));
    credential.expires_in = Some(Timestamp::from_second(NOW as i64 + 60).unwrap());
    assert_eq!(signed(&credential).lifetime_ms, (NOW as i64 + 60) * 1000);
}

fn environment(variables: &[(&str, &str)]) -> StaticEnv {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    // Without the instance's metadata service, for which a test would have to wait.
    let mut envs: HashMap<String, String> = variables.iter().map(own).collect();
    envs.insert("AWS_EC2_METADATA_DISABLED".into(), "true".into());
    StaticEnv {
        home_dir: None,
        envs,
    }
}

#[test]
fn credentials_are_found_where_awss_tools_look() {
    let key_of = |variables: &[(&str, &str)]| {
        credential(environment(variables)).map(|credential| credential.access_key_id)
    };
    let given = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    assert_eq!(key_of(&given).as_deref(), Ok(KEY));

    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("credentials");
    let of_profile =
        format!("[team]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&shared, of_profile).unwrap();
    let shared = shared.to_str().unwrap();
    let profile = [
        ("AWS_SHARED_CREDENTIALS_FILE", shared),
        ("AWS_PROFILE", "team"),
    ];
    assert_eq!(key_of(&profile).as_deref(), Ok(KEY));

    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", container())];
    let container = container
        .each_ref()
        .map(|(name, url)| (*name, url.as_str()));
    assert_eq!(key_of(&container).as_deref(), Ok(KEY));

    let problem = key_of(&[]).unwrap_err();
    assert!(problem.contains("no AWS credentials"), "{problem}");
}

/// A credentials endpoint like that of a container in ECS or EKS. It answers once.
fn container() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/credentials", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines();
        lines.map_while(Result::ok).find(String::is_empty);
        let body = serde_json::json!({
            "AccessKeyId": KEY,
            "SecretAccessKey": SECRET,
            "Token": "session",
            "Expiration": "2099-01-01T00:00:00Z",
        })
        .to_string();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
    });
    url
}
