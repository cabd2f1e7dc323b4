//! `[translate]`: the model that translates images before they are scored.

use std::path::PathBuf;

use super::settings::Settings;

/// The most steps, as of `residuald translate`.
const MOST_STEPS: usize = 1000;

#[derive(Debug, Clone, PartialEq)]
pub struct TranslateSettings {
    /// Folder of a bundle or of a diffusion pipeline.
    pub bundle: PathBuf,
    /// Share of the steps that an image goes through. `None`: the default.
    pub strength: Option<f64>,
    /// Number of steps from noise to image. `None`: the model's own.
    pub steps: Option<usize>,
    pub seed: u64,
}

impl TranslateSettings {
    /// Returns `None` if there is no model.
    pub(super) fn parse(s: &mut Settings) -> Option<TranslateSettings> {
        let bundle = s.optional_text("translate.bundle");
        let share = |strength: f64| (0.0..=1.0).contains(&strength);
        let strength = s.number("translate.strength", "from 0 to 1", share);
        let steps = s.optional_integer("translate.steps", 1, MOST_STEPS);
        let seed = s.integer("translate.seed", 0, i64::MAX as usize) as u64;
        if bundle.is_none() && (strength.is_some() || steps.is_some()) {
            s.problem(
                "translate.bundle is not set, but other settings of the section are: set it to the folder of the model that translates images, or remove them".into(),
            );
        }
        Some(TranslateSettings {
            bundle: bundle?.into(),
            strength,
            steps,
            seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn what_translates_is_a_folder_with_a_strength() {
        let translate = |flags: &[&str]| load(SMALLEST, &[], flags).map(|config| config.translate);
        assert_eq!(translate(&[]), Ok(None));
        let set = translate(&["translate.bundle=m", "translate.strength=0.25"]).unwrap();
        let set = set.unwrap();
        assert_eq!((set.strength, set.steps, set.seed), (Some(0.25), None, 0));
        let bundle = "translate.bundle=m";
        for (flags, expected) in [
            (&["translate.steps=5"][..], "translate.bundle is not set"),
            (&[bundle, "translate.strength=1.5"], "a number from 0 to 1"),
            (&[bundle, "translate.steps=0"], "translate.steps"),
            (&[bundle, "translate.strenght=1"], "did you mean"),
            (
                &[bundle, "output.restored_topic=restored"],
                "translate.bundle and output.restored_topic are both set",
            ),
        ] {
            let error = translate(flags).unwrap_err();
            assert!(error.contains(expected), "{expected}\nnot in\n{error}");
        }
    }
}
