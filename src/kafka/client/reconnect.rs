//! Reconnects a client that has lost all brokers. librdkafka forgets the brokers that a metadata response does not
//! list. A broker that is cut off from its controller for some seconds lists none at all, and then the client has no
//! address left to connect to (confluentinc/librdkafka#5301, open at 2.16). This module adds the bootstrap servers
//! again, as librdkafka's own recovery would.

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

/// How often a producer is checked.
const EVERY: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Adds the bootstrap servers to a client that gets no answer. Brokers that the client already knows are unchanged.
pub(in crate::kafka) fn add_servers<C: ClientContext>(client: &Client<C>, servers: &str) {
    let Ok(servers) = CString::new(servers) else {
        return;
    };
    // SAFETY: the client lives as long as its borrow, the text as long as the call, and librdkafka copies it.
    let added = unsafe { rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
    tracing::debug!("no broker answers; added {added} bootstrap servers again");
}

/// Starts a thread that calls [`add_servers`] while the producer has unanswered messages and reaches no broker. The
/// thread ends when the producer is dropped.
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
        tracing::warn!("cannot start the thread that reconnects the producer: {e}");
    }
}
