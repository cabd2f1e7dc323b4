//! Decides which settings take effect when SIGHUP reloads them.

use std::collections::BTreeMap;

use super::settings::Effective;
use super::{
    Config, ConfigError, OutputSettings, RESTORES_TRANSLATED, ScreenMode, TelemetrySettings,
    restores_translated,
};

/// Keys, and sections that end in a dot. All other settings require a restart, because connections, topics, threads and
/// allocations depend on them.
const LIVE: [&str; 13] = [
    "model.",
    "inference.",
    "screen.",
    "translate.",
    "threshold.",
    "input.image_field",
    "input.max_image_bytes",
    "input.max_pixels",
    "input.bit_depth",
    "output.include_record",
    "output.attributions",
    "output.inline_limit",
    "telemetry.log_level",
];

/// The result of reloading the settings.
pub struct Reloaded {
    /// The settings in use, with the changes that take effect now.
    pub config: Config,
    /// Keys of the changed settings that take effect now.
    pub changed: Vec<String>,
    /// Keys of the changed settings that take effect at the next start.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// Merges newly read settings into those in use.
    ///
    /// # Errors
    /// The merged settings contradict each other. A restart resolves it.
    pub fn reloaded(&self, new: Config) -> Result<Reloaded, ConfigError> {
        let differ = different(&self.effective, &new.effective);
        let (changed, needs_restart) = differ.into_iter().partition(|key| is_live(key));
        let config = Config {
            model: new.model,
            inference: new.inference,
            screen: new.screen,
            translate: new.translate,
            threshold: new.threshold,
            images: new.images,
            output: OutputSettings {
                include_record: new.output.include_record,
                attributions: new.output.attributions,
                inline_limit: new.output.inline_limit,
                ..self.output.clone()
            },
            telemetry: TelemetrySettings {
                log_level: new.telemetry.log_level,
                ..self.telemetry.clone()
            },
            effective: joined(&self.effective, new.effective),
            secrets: new.secrets,
            ..self.clone()
        };
        if config.screen.mode == ScreenMode::On && config.output.scores_topic.is_some() {
            let problem = "screen.mode = \"on\" would take effect now, but it contradicts output.scores_topic, which changes only with a restart: restart residuald";
            return Err(ConfigError::Settings(vec![problem.to_owned()]));
        }
        if restores_translated(config.translate.as_ref(), &config.output) {
            let problem = format!(
                "{RESTORES_TRANSLATED}; the first takes effect now, and the second only with a restart: restart residuald"
            );
            return Err(ConfigError::Settings(vec![problem]));
        }
        Ok(Reloaded {
            config,
            changed,
            needs_restart,
        })
    }
}

fn is_live(key: &str) -> bool {
    let is = |live: &str| key == live || (live.ends_with('.') && key.starts_with(live));
    LIVE.into_iter().any(is)
}

/// Returns the keys whose value differs or that only one side has.
fn different(old: &[Effective], new: &[Effective]) -> Vec<String> {
    let values = |all: &[Effective]| {
        let of = |e: &Effective| (e.key.clone(), e.identity());
        all.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let (old, new) = (values(old), values(new));
    let keys = old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)));
    let mut keys: Vec<String> = keys
        .filter(|key| old.get(*key) != new.get(*key))
        .cloned()
        .collect();
    keys.sort();
    keys
}

/// Returns the live settings of `new` and all others of `old`.
fn joined(old: &[Effective], new: Vec<Effective>) -> Vec<Effective> {
    let rest = old.iter().filter(|e| !is_live(&e.key)).cloned();
    let live = new.into_iter().filter(|e| is_live(&e.key));
    rest.chain(live).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::ThresholdRule;

    const SMALLEST: [&str; 2] = ["kafka.topics=payments", "model.bundle=m"];

    fn load(flags: &[&str]) -> Config {
        let all = SMALLEST.iter().chain(flags);
        let all: Vec<String> = all.map(|flag| (*flag).to_owned()).collect();
        Config::load(None, vec![], &all).unwrap()
    }

    #[test]
    fn what_is_live_takes_effect_and_the_rest_is_named() {
        let start = load(&["threshold.quantile=0.9"]);
        let new = [
            "threshold.score=3.0",
            "output.attributions=2",
            "output.anomalies_topic=elsewhere",
            "telemetry.log_level=debug",
            "kafka.group_id=other",
            "kafka.client.\"sasl.password\"=first-secret",
        ];
        let Reloaded {
            config,
            changed,
            needs_restart,
        } = start.reloaded(load(&new)).unwrap();
        assert_eq!(config.threshold, ThresholdRule::Score(3.0));
        assert_eq!(config.output.attributions, 2);
        assert_eq!(config.output.anomalies_topic, "anomalies");
        assert_eq!(config.kafka.group_id, "residuald");
        assert_eq!(config.telemetry.log_level, "debug");
        let live = [
            "output.attributions",
            "telemetry.log_level",
            "threshold.quantile",
            "threshold.score",
        ];
        assert_eq!(changed, live);
        let held = [
            "kafka.client.\"sasl.password\"",
            "kafka.group_id",
            "output.anomalies_topic",
        ];
        assert_eq!(needs_restart, held);

        // After the change is reverted, no setting waits for a restart, and the current settings do not count as changed.
        let same = [
            "threshold.score=3.0",
            "output.attributions=2",
            "telemetry.log_level=debug",
        ];
        let again = config.reloaded(load(&same)).unwrap();
        assert_eq!((again.changed, again.needs_restart), (vec![], vec![]));
    }

    #[test]
    fn another_secret_is_seen_though_it_is_not_shown() {
        let secret = |text: &str| load(&[&format!("kafka.client.\"sasl.password\"={text}")]);
        let reloaded = secret("hunter2").reloaded(secret("hunter3")).unwrap();
        assert_eq!(reloaded.needs_restart, ["kafka.client.\"sasl.password\""]);
        let token = |text: &str| load(&[&format!("http.token={text}")]);
        let reloaded = token("one").reloaded(token("two")).unwrap();
        assert_eq!(reloaded.needs_restart, ["http.token"]);
    }

    #[test]
    fn a_screen_cannot_go_on_before_the_scores_topic_is_gone() {
        let start = load(&["output.scores_topic=scores"]);
        let refused = start.reloaded(load(&["screen.mode=on"]));
        assert!(refused.is_err_and(|e| e.to_string().contains("restart")));
    }

    #[test]
    fn what_translates_takes_effect_at_once_but_not_beside_restored_images() {
        let start = load(&[]);
        let reloaded = start.reloaded(load(&["translate.bundle=t"])).unwrap();
        assert_eq!(reloaded.changed, ["translate.bundle"]);
        assert!(reloaded.config.translate.is_some());
        let start = load(&["output.restored_topic=restored"]);
        let refused = start.reloaded(load(&["translate.bundle=t"]));
        assert!(refused.is_err_and(|e| e.to_string().contains("restart")));
    }
}
