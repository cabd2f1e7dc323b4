//! Sizes of librdkafka's queues, derived from the memory that the Kafka clients may use. Explicit settings take
//! precedence.

use crate::config::{ClientSettings, KafkaSettings};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The most bytes to fetch ahead. Fetching further ahead does not raise the throughput.
const MAX_FETCHED_AHEAD: u64 = 16 * MIB;
/// librdkafka's overhead in bytes for each queued message.
const MESSAGE_OVERHEAD: u64 = 512;
/// librdkafka's default for message.max.bytes. fetch.max.bytes must not be smaller.
const MESSAGE_MAX_BYTES: u64 = 1_000_000;

/// Sets the queue sizes that the settings leave out. Half of `share` is for decompressed batches, a quarter for
/// messages that wait to be sent, and the rest for records fetched ahead and for responses being received.
pub fn fit(kafka: &mut KafkaSettings, share: u64) {
    let largest = |own: &ClientSettings| {
        let set = own.get("message.max.bytes");
        let set = set.or(kafka.client.get("message.max.bytes"));
        set.and_then(|bytes| bytes.parse().ok())
            .unwrap_or(MESSAGE_MAX_BYTES)
    };
    let (read, written) = (largest(&kafka.consumer), largest(&kafka.producer));
    let ahead = (share / 8).min(MAX_FETCHED_AHEAD);
    // A response with many small messages takes many times its size in memory, and every broker may send one.
    let response = (share / 64).min(MAX_FETCHED_AHEAD).max(read);
    let messages = (share / 8 / MESSAGE_OVERHEAD).clamp(1_000, 100_000);
    let open = |settings: &ClientSettings, name: &str| {
        settings.get(name).is_none() && kafka.client.get(name).is_none()
    };
    for (name, value) in [
        ("queued.max.messages.kbytes", ahead.div_ceil(KIB)),
        ("queued.min.messages", messages),
        ("fetch.max.bytes", response),
    ] {
        if open(&kafka.consumer, name) {
            kafka.consumer.set(name, &value.to_string());
        }
    }
    let waiting = (share / 4).max(2 * written).div_ceil(KIB);
    let name = "queue.buffering.max.kbytes";
    if open(&kafka.producer, name) {
        let max = i32::MAX as u64 / KIB;
        kafka.producer.set(name, &waiting.min(max).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn kafka(flags: &[&str]) -> KafkaSettings {
        let own = ["kafka.topics=in", "model.bundle=m"].iter().chain(flags);
        let flags: Vec<String> = own.map(|flag| (*flag).to_owned()).collect();
        Config::load(None, vec![], &flags).unwrap().kafka
    }

    #[test]
    fn queues_follow_the_share_and_settings_win() {
        for share in [8 * MIB, 40 * MIB, 200 * MIB, 512 * MIB] {
            let mut kafka = kafka(&[]);
            fit(&mut kafka, share);
            let set = |name| -> u64 { kafka.consumer.get(name).unwrap().parse().unwrap() };
            assert!(set("queued.max.messages.kbytes") * KIB <= share / 8 + KIB);
            assert!(
                set("queued.min.messages") * MESSAGE_OVERHEAD
                    <= (share / 8).max(1_000 * MESSAGE_OVERHEAD)
            );
            super::super::super::probe::check_settings(&kafka).unwrap();
        }
        let mut ours = kafka(&[
            "kafka.client.\"queued.max.messages.kbytes\"=77",
            "kafka.producer.\"queue.buffering.max.kbytes\"=99",
            "kafka.client.\"message.max.bytes\"=20000000",
        ]);
        fit(&mut ours, 40 * MIB);
        assert_eq!(ours.consumer.get("queued.max.messages.kbytes"), None);
        assert_eq!(ours.producer.get("queue.buffering.max.kbytes"), Some("99"));
        assert_eq!(ours.consumer.get("fetch.max.bytes"), Some("20000000"));
        super::super::super::probe::check_settings(&ours).unwrap();
    }
}
