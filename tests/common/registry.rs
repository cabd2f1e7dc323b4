//! A tiny schema registry on loopback: answers what it was told, in the words of Confluent's API.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::PATIENCE;

/// Runs until the process ends.
#[derive(Clone)]
pub struct SchemaRegistry {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Value>,
    requests: Vec<String>,
    mood: Mood,
    /// The header that it insists on.
    authorization: Option<String>,
}

/// How a registry is down.
#[derive(Default, Clone, Copy, PartialEq)]
pub enum Mood {
    #[default]
    Well,
    /// Takes connections and closes them.
    Silent,
    Failing,
    /// A proxy before it does not find it.
    Misplaced,
    /// Takes requests and never answers.
    Hanging,
    /// Answers without end.
    Endless,
    /// A proxy before it wants a login, with a page and 200.
    Login,
    /// Sends the client in a circle.
    Redirecting,
    /// Answers with another schema than it was asked for.
    MixedUp,
}

impl SchemaRegistry {
    pub fn start() -> SchemaRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let registry = SchemaRegistry {
            url,
            state: state.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = state.clone();
                // One that is gone again is no business of the others.
                std::thread::spawn(move || stream.and_then(|stream| answer(&stream, &state)));
            }
        });
        registry
    }

    pub fn setting(&self) -> String {
        format!("input.schema_registry.url={}", self.url)
    }

    pub fn schema(&self, id: u32, schema_type: &str, schema: &str, references: Value) {
        let answer = json!({"schema": schema, "schemaType": schema_type, "references": references});
        self.put(&format!("/schemas/ids/{id}"), answer);
    }

    pub fn subject(&self, subject: &str, version: u32, schema: &str) {
        let answer = json!({"subject": subject, "version": version, "id": 1000, "schema": schema});
        self.put(&format!("/subjects/{subject}/versions/{version}"), answer);
    }

    fn put(&self, path: &str, answer: Value) {
        let mut state = self.state.lock().unwrap();
        state.answers.insert(path.to_owned(), answer);
    }

    pub fn is(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    pub fn insists_on(&self, authorization: &str) {
        self.state.lock().unwrap().authorization = Some(authorization.to_owned());
    }

    /// Everything that was asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Requests so far for this path.
    pub fn requests(&self, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|p| *p == path).count()
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut authorization = None;
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.to_owned());
            }
            None if line.is_empty() => break,
            _ => {}
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    state.requests.push(path.clone());
    let absent = json!({"error_code": 40403, "message": "Schema not found"});
    let location = format!("Location: {path}\r\n");
    let mut header = "";
    let (status, body) = match state.mood {
        Mood::Silent => return Ok(()),
        Mood::Hanging => {
            drop(state);
            std::thread::park_timeout(PATIENCE);
            return Ok(());
        }
        Mood::Endless => {
            drop(state);
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{{")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
        Mood::Login => (200, "<html>Who are you?</html>".to_owned()),
        Mood::Redirecting => {
            header = &location;
            (302, String::new())
        }
        Mood::MixedUp => {
            let answer = json!({"schema": "\"string\"", "id": 4_000_000});
            (200, answer.to_string())
        }
        Mood::Failing => (
            503,
            json!({"error_code": 50003, "message": "no leader"}).to_string(),
        ),
        Mood::Misplaced => (404, "<html>not found</html>".to_owned()),
        Mood::Well if state.authorization.is_some() && state.authorization != authorization => (
            401,
            json!({"error_code": 401, "message": "Unauthorized"}).to_string(),
        ),
        Mood::Well => match state.answers.get(&path) {
            Some(answer) => (200, answer.to_string()),
            None => (404, absent.to_string()),
        },
    };
    write!(
        stream,
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
