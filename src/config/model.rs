//! `[model]`: the bundle and the limits of loading it.

use std::path::PathBuf;
use std::time::Duration;

use super::inference::Provider;
use super::settings::Settings;

const LEAST_LOAD_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct ModelSettings {
    pub bundle: PathBuf,
    /// Timeout for loading and checking the bundle.
    pub load_timeout: Duration,
    /// Whether a reload may load a bundle that reads other fields than the current one.
    pub allow_schema_change: bool,
}

impl ModelSettings {
    pub(super) fn parse(s: &mut Settings, provider: Provider) -> ModelSettings {
        let what = "set it to the folder of the model, for instance bundle = \"models/payments\"";
        let bundle = s.required_text("model.bundle", what).into();
        let load_timeout = s.optional_duration("model.load_timeout");
        if load_timeout.is_some_and(|timeout| timeout < LEAST_LOAD_TIMEOUT) {
            s.problem(format!(
                "model.load_timeout must be at least {LEAST_LOAD_TIMEOUT:?}"
            ));
        }
        ModelSettings {
            bundle,
            load_timeout: load_timeout.unwrap_or(provider.load_timeout()),
            allow_schema_change: s.boolean("model.allow_schema_change"),
        }
    }
}
