//! Exactly-once on a real Apache Kafka behind a proxy that delivers a request late: a connection breaks after a request
//! was sent, librdkafka sends it again, and the first copy reaches the broker only while the next transaction is open.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::common::cluster::cluster_with;
use crate::common::kafka::{committed, produce, read_all, spread};
use crate::common::process::Daemon;
use crate::common::{free_port, sample, wait_for};

const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;

/// Records of the transaction whose request is late, and of the next one.
const FIRST: i64 = 50;
const NEXT: i64 = 100;

/// What the proxy does with requests.
enum Plan {
    Forward,
    /// Hold the next request with this API key, and break its connection.
    Hold(i16),
    Held(Vec<u8>),
    /// Deliver the held request just before the next request with this API key, which is then forwarded, or else held
    /// until its connection ends.
    DeliverBefore {
        held: Vec<u8>,
        api: i16,
        forward: bool,
    },
    Delivered,
}

/// Forwards all connections of one broker.
#[derive(Clone)]
struct Proxy {
    broker: u16,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    fn start(port: u16, broker: u16) -> Proxy {
        let proxy = Proxy {
            broker,
            plan: Arc::new(Mutex::new(Plan::Forward)),
        };
        let (listener, of_connections) = (
            TcpListener::bind(("127.0.0.1", port)).unwrap(),
            proxy.clone(),
        );
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (proxy, client) = (of_connections.clone(), client.unwrap());
                std::thread::spawn(move || proxy.serve(&client));
            }
        });
        proxy
    }

    fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    fn await_held(&self) -> Vec<u8> {
        wait_for("the request to hold", || {
            match &*self.plan.lock().unwrap() {
                Plan::Held(request) => Some(request.clone()),
                _ => None,
            }
        })
    }

    fn await_delivered(&self) {
        wait_for("the late request to be delivered", || {
            matches!(&*self.plan.lock().unwrap(), Plan::Delivered).then_some(())
        });
    }

    fn serve(&self, client: &TcpStream) {
        let Ok(broker) = TcpStream::connect(("127.0.0.1", self.broker)) else {
            return;
        };
        let (mut answers, mut to_client) =
            (broker.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let _ = self.forward(client, &broker);
        let _ = broker.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Forwards requests until a connection ends.
    fn forward(&self, mut client: &TcpStream, mut broker: &TcpStream) -> std::io::Result<()> {
        loop {
            let request = frame(client)?;
            let api_of_request = i16::from_be_bytes([request[4], request[5]]);
            let mut plan = self.plan.lock().unwrap();
            match &*plan {
                Plan::Hold(api) if *api == api_of_request => {
                    *plan = Plan::Held(request);
                    return Ok(());
                }
                Plan::DeliverBefore { held, api, forward } if *api == api_of_request => {
                    let mut late = TcpStream::connect(("127.0.0.1", self.broker))?;
                    late.write_all(held)?;
                    frame(&late)?;
                    let forward = *forward;
                    *plan = Plan::Delivered;
                    drop(plan);
                    if !forward {
                        let _ = client.read(&mut [0]);
                        return Ok(());
                    }
                }
                _ => drop(plan),
            }
            broker.write_all(&request)?;
        }
    }
}

/// Reads a request or an answer, with its size.
fn frame(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut frame = size.to_vec();
    frame.resize(4 + u32::from_be_bytes(size) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

#[test]
fn a_late_request_of_a_transaction_does_not_touch_the_next() {
    let port = free_port();
    let Some(cluster) = cluster_with(&["--proxied", &port.to_string()]) else {
        return;
    };
    let ports = std::fs::read_to_string(cluster.dir.join("proxied")).unwrap();
    let (_, broker) = ports.trim().split_once(' ').unwrap();
    let proxy = Proxy::start(port, broker.parse().unwrap());
    // A late commit would publish the verdicts of the next transaction without their offsets.
    let commit = judged(&proxy, &cluster.brokers, port, END_TXN, ADD_OFFSETS_TO_TXN);
    // Late offsets would replace those of the next transaction.
    let offsets = judged(&proxy, &cluster.brokers, port, TXN_OFFSET_COMMIT, END_TXN);
    let once: Vec<i64> = (0..NEXT).collect();
    assert_eq!((commit, offsets), (once.clone(), once));
}

/// The first transaction's request `api` is delivered again before the next transaction's request `before`. Then the
/// daemon is killed, and another one takes over. Returns the offsets of all judged records.
fn judged(proxy: &Proxy, brokers: &str, port: u16, api: i16, before: i16) -> Vec<i64> {
    let prefix = format!("late-{api}");
    let name = |topic: &str| format!("{prefix}-{topic}");
    let topics = ["in", "scores", "anomalies", "dead"].map(name);
    crate::common::admin::Admin::new(brokers).create_all(&topics, 1, &[]);
    let settings = [
        format!("kafka.brokers=127.0.0.1:{port}"),
        "kafka.delivery=exactly-once".to_owned(),
        // So that records that are sent together are in one transaction.
        "kafka.transaction_window=1s".to_owned(),
        format!("kafka.group_id={prefix}"),
        format!("kafka.topics={}", topics[0]),
        format!("output.scores_topic={}", topics[1]),
        format!("output.anomalies_topic={}", topics[2]),
        format!("output.dead_letter_topic={}", topics[3]),
        // The open transaction of a killed process ends when the next process starts.
        "kafka.consumer.\"group.instance.id\"=one".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let records = |from: i64, to: i64| spread(&sample(to as usize)[from as usize..], 1);
    let until = |next: i64| {
        wait_for("the group's offset", || {
            (committed(brokers, &prefix, &topics[0]).get(&0) == Some(&next)).then_some(())
        });
    };
    let daemon = Daemon::ready(brokers, &settings);
    proxy.plan(Plan::Hold(api));
    produce(brokers, &topics[0], &records(0, FIRST));
    let held = proxy.await_held();
    until(FIRST);
    let forward = before == END_TXN;
    proxy.plan(Plan::DeliverBefore {
        held,
        api: before,
        forward,
    });
    produce(brokers, &topics[0], &records(FIRST, NEXT));
    proxy.await_delivered();
    if forward {
        daemon.await_count("scored", NEXT as u64);
    }
    daemon.kill_9();
    let daemon = Daemon::ready(brokers, &settings);
    until(NEXT);
    daemon.drains();
    let scores = read_all(brokers, &topics[1]);
    let offsets = scores
        .iter()
        .map(|score| score.json()["source"]["offset"].as_i64());
    offsets.map(Option::unwrap).collect()
}
