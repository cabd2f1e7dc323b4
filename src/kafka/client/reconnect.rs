//! Brings a client back that has lost all brokers. librdkafka forgets brokers that a metadata answer does not name. A broker that
//! is cut off from its controller for some seconds names none at all, and then the client has nobody left to ask
//! (confluentinc/librdkafka#5301, open at 2.16). Adding the bootstrap servers again is what its own recovery would do.

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

/// How often a producer is looked at.
const EVERY: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Adds the bootstrap servers to a client that gets no answer. Those that it has already stay as they are.
pub(in crate::kafka) fn add_servers<C: ClientContext>(client: &Client<C>, servers: &str) {
    let Ok(servers) = CString::new(servers) else {
        return;
    };
    // SAFETY: the client lives as long as its borrow, the text as long as the call, and librdkafka copies it.
    let known = unsafe { rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
    tracing::debug!("no answer from the brokers; {known} bootstrap servers are known");
}

/// Does so for a producer that has unanswered messages and reaches no broker, until that is dropped.
pub(in crate::kafka) fn keep<C: ProducerContext + 'static>(
    producer: &Arc<ThreadedProducer<C>>,
    topic: &str,
    servers: &str,
) {
    let (producer, topic, servers) = (
        Arc::downgrade(producer),
        topic.to_owned(),
        servers.to_owned(),
    );
    let keeper = std::thread::Builder::new().name("reach".into());
    let keeper = keeper.spawn(move || {
        let mut waits = false;
        loop {
            std::thread::sleep(EVERY);
            let Some(producer) = Weak::upgrade(&producer) else {
                return;
            };
            let waited = std::mem::replace(&mut waits, producer.in_flight_count() > 0);
            let is_silent = || {
                producer
                    .client()
                    .fetch_metadata(Some(&topic), ASK_WITHIN)
                    .is_err()
            };
            if waits && waited && is_silent() {
                add_servers(producer.client(), &servers);
            }
        }
    });
    if let Err(e) = keeper {
        tracing::warn!("no thread looks after the producer's brokers: {e}");
    }
}
