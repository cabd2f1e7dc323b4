//! How much librdkafka's queues hold: by the share of memory that Kafka's clients have, unless the settings say otherwise.

use crate::config::{ClientSettings, Kafka};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// As much is fetched ahead, at most: more makes nothing faster.
const MOST_AHEAD: u64 = 16 * MIB;
/// librdkafka's own for each message that waits, beside its bytes.
const MESSAGE: u64 = 512;
/// librdkafka's default of message.max.bytes, which fetch.max.bytes has to reach.
const MESSAGE_MAX_BYTES: u64 = 1_000_000;

/// Sets what the settings leave open. The share is for: what is decompressed, half; messages that wait to be sent, a quarter; what is
/// fetched ahead and the answers of brokers on their way, the rest.
pub fn fit(kafka: &mut Kafka, share: u64) {
    let largest = |own: &ClientSettings| {
        let set = own.get("message.max.bytes");
        let set = set.or(kafka.client.get("message.max.bytes"));
        set.and_then(|bytes| bytes.parse().ok())
            .unwrap_or(MESSAGE_MAX_BYTES)
    };
    let (read, written) = (largest(&kafka.consumer), largest(&kafka.producer));
    let ahead = (share / 8).min(MOST_AHEAD);
    // An answer of many small messages takes many times its bytes, and every broker may send one.
    let answer = (share / 64).min(MOST_AHEAD).max(read);
    let messages = (share / 8 / MESSAGE).clamp(1_000, 100_000);
    let open = |settings: &ClientSettings, name: &str| {
        settings.get(name).is_none() && kafka.client.get(name).is_none()
    };
    for (name, value) in [
        ("queued.max.messages.kbytes", ahead.div_ceil(KIB)),
        ("queued.min.messages", messages),
        ("fetch.max.bytes", answer),
    ] {
        if open(&kafka.consumer, name) {
            kafka.consumer.set(name, &value.to_string());
        }
    }
    let waiting = (share / 4).max(2 * written).div_ceil(KIB);
    let name = "queue.buffering.max.kbytes";
    if open(&kafka.producer, name) {
        let most = i32::MAX as u64 / KIB;
        kafka.producer.set(name, &waiting.min(most).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn kafka(flags: &[&str]) -> Kafka {
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
            assert!(set("queued.min.messages") * MESSAGE <= (share / 8).max(1_000 * MESSAGE));
            crate::kafka::check_settings(&kafka).unwrap();
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
        crate::kafka::check_settings(&ours).unwrap();
    }
}
