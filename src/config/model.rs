//! `[model]`: the bundle and how it is loaded.

use std::path::PathBuf;
use std::time::Duration;

use super::inference::Provider;
use super::settings::Settings;

const LEAST_LOAD_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct ModelSettings {
    pub bundle: PathBuf,
    /// Deadline for loading and checking it.
    pub load_timeout: Duration,
    /// Whether a reload may bring a bundle that reads other fields than the one in use.
    pub allow_schema_change: bool,
}

impl ModelSettings {
    pub(super) fn parse(s: &mut Settings, provider: Provider) -> ModelSettings {
        let what = "the folder of the model, for instance bundle = \"models/payments\"";
        let bundle = s.required_text("model.bundle", what).into();
        let asked = s.optional_duration("model.load_timeout");
        if asked.is_some_and(|asked| asked < LEAST_LOAD_TIMEOUT) {
            s.problem(format!(
                "model.load_timeout must be at least {LEAST_LOAD_TIMEOUT:?}"
            ));
        }
        ModelSettings {
            bundle,
            load_timeout: asked.unwrap_or(provider.load_timeout()),
            allow_schema_change: s.boolean("model.allow_schema_change"),
        }
    }
}
