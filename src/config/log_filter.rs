//! Parses the log filter of `telemetry.log_level` and `PUT /log-level`.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Parses a level, or levels by module separated by commas: "info,residuald::kafka=debug".
///
/// # Errors
/// A message that describes what is wrong.
pub fn parse(text: &str) -> Result<EnvFilter, String> {
    let expected = "expected error, warn, info, debug, trace or off, also per module, for example \"info,residuald::kafka=debug\"";
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    // tracing-subscriber 0.3.23 fails an assertion if the same span filter occurs twice, and nothing here logs spans.
    if text.contains(['[', ']', '{', '}']) {
        return Err(format!(
            "filters by span or field are not supported: {expected}"
        ));
    }
    // Regular expressions are disabled, because they may use any amount of memory.
    let filter = EnvFilter::builder().with_regex(false);
    let filter = filter.parse(directives.join(","));
    let filter = filter.map_err(|e| format!("{e}: {expected}"))?;
    // EnvFilter takes an unknown word for a module and hides all others, so the typo "debgu" would silence the log.
    let mut bare = directives.into_iter().filter(|word| !word.contains('='));
    match bare.find(|word| word.parse::<LevelFilter>().is_err() || word.is_empty()) {
        Some(word) => Err(format!("`{word}` is not a level: {expected}")),
        None => Ok(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_filter_by_span_or_field_is_refused() {
        for text in [
            "[a:{b=x}]=trace,[a:{b=x}]=trace",
            "info,residuald[x]=debug",
            "{a}",
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains("span or field"), "{refused}");
        }
    }

    #[test]
    fn a_filter_is_levels_and_modules() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,residuald::kafka=debug",
            "residuald=trace",
            "info, ureq=debug",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, said) in [
            ("", "`` is not a level"),
            ("debgu", "`debgu` is not a level"),
            ("info,", "`` is not a level"),
            ("residuald::kafka", "`residuald::kafka` is not a level"),
            ("residuald=loud", "expected error, warn"),
            ("info,=,", "expected error, warn"),
        ] {
            let problem = parse(bad).unwrap_err();
            assert!(problem.contains(said), "{bad}: {problem}");
        }
    }
}
