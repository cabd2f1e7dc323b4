//! Values of features that drawn records must have: `--where merchant_category=jewellery`.

use crate::bundle::generative::About;
use crate::bundle::manifest::{Feature, FeatureKind, Missing, TimePart};

/// Maximum number of names or words that a message lists.
const MOST_LISTED: usize = 20;

/// A row that holds the values of some features.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// [F]; 0 where the feature is not given, NaN where it is given as missing.
    pub x: Vec<f32>,
    /// [F]; 1 where the feature is given.
    pub known: Vec<f32>,
}

impl Conditions {
    /// Parses conditions NAME=VALUE on features. `NAME=null` draws records without the feature.
    ///
    /// # Errors
    /// A message, if the feature does not exist or cannot have the value.
    pub fn parse(
        given: &[(String, String)],
        features: &[Feature],
        about: &About,
    ) -> Result<Conditions, String> {
        let mut conditions = Conditions {
            x: vec![0.0; features.len()],
            known: vec![0.0; features.len()],
        };
        for (name, value) in given {
            let column = find(name, features)?;
            if conditions.known[column] == 1.0 {
                return Err(format!("`{name}` is given twice"));
            }
            let feature = &features[column];
            let range = &about.marginals[column].quantiles;
            let parsed = parse(value.trim(), feature, range);
            conditions.x[column] =
                parsed.map_err(|problem| format!("{name}={value}: {problem}"))?;
            conditions.known[column] = 1.0;
        }
        Ok(conditions)
    }

    /// Returns the conditions for `count` rows, each [count, F].
    pub fn rows(&self, count: usize) -> (Vec<f32>, Vec<f32>) {
        (self.x.repeat(count), self.known.repeat(count))
    }
}

fn find(name: &str, features: &[Feature]) -> Result<usize, String> {
    if let Some(column) = features.iter().position(|feature| feature.name == name) {
        return Ok(column);
    }
    let same_path = |(_, feature): &(usize, &Feature)| feature.path == name;
    let found: Vec<_> = features.iter().enumerate().filter(same_path).collect();
    match found[..] {
        [(column, _)] => Ok(column),
        [] => {
            let near = |feature: &&Feature| strsim::jaro_winkler(&feature.name, name) > 0.85;
            let meant = features.iter().find(near);
            let hint = match meant {
                Some(feature) => format!("did you mean `{}`?", feature.name),
                None => format!(
                    "the features are {}",
                    listed(features.iter().map(|f| f.name.as_str()))
                ),
            };
            Err(format!("there is no feature `{name}`: {hint}"))
        }
        _ => {
            let names = listed(found.iter().map(|(_, feature)| feature.name.as_str()));
            Err(format!(
                "several features read `{name}`: name one of {names}"
            ))
        }
    }
}

fn parse(value: &str, feature: &Feature, range: &[f32]) -> Result<f32, String> {
    if value == "null" {
        return match feature.missing {
            Missing::Impute => Ok(f32::NAN),
            Missing::Reject => Err("every record must have this feature".to_owned()),
        };
    }
    match &feature.kind {
        FeatureKind::Number => {
            let number: f32 = value.parse().map_err(|_| "must be a number".to_owned())?;
            let (low, high) = (range[0], range[range.len() - 1]);
            match number {
                number if (low..=high).contains(&number) => Ok(number),
                _ => Err(format!("the model knows values from {low} to {high} only")),
            }
        }
        FeatureKind::Bool => match value {
            "true" | "1" => Ok(1.0),
            "false" | "0" => Ok(0.0),
            _ => Err("must be true or false".to_owned()),
        },
        FeatureKind::Categorical { vocabulary } => {
            let index = vocabulary.iter().position(|word| word == value);
            let words = || listed(vocabulary.iter().map(String::as_str));
            index
                .map(|index| index as f32)
                .ok_or_else(|| format!("must be one of {}", words()))
        }
        FeatureKind::Timestamp {
            part: TimePart::HourOfDay,
            ..
        } => {
            let hour = value.parse().ok().filter(|hour| (0.0..24.0).contains(hour));
            hour.ok_or_else(|| "must be an hour from 0 to below 24, such as 13.5".to_owned())
        }
        FeatureKind::Timestamp {
            part: TimePart::DayOfWeek,
            ..
        } => {
            const DAYS: [&str; 7] = [
                "monday",
                "tuesday",
                "wednesday",
                "thursday",
                "friday",
                "saturday",
                "sunday",
            ];
            let by_name = DAYS.iter().position(|day| day.eq_ignore_ascii_case(value));
            let day = by_name.or_else(|| value.parse().ok().filter(|day| *day < 7));
            day.map(|day| day as f32)
                .ok_or_else(|| "must be a weekday: monday to sunday, or 0 (Monday) to 6".to_owned())
        }
    }
}

fn listed<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let count = names.len();
    let mut text = names.take(MOST_LISTED).collect::<Vec<_>>().join(", ");
    if count > MOST_LISTED {
        text.push_str(&format!(" and {} more", count - MOST_LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(given: &[(&str, &str)]) -> Result<Conditions, String> {
        let features: Vec<Feature> = serde_json::from_value(json!([
            {"name": "hour", "path": "time", "type": "timestamp", "part": "hour_of_day"},
            {"name": "weekday", "path": "time", "type": "timestamp", "part": "day_of_week"},
            {"name": "amount", "path": "sum.amount", "type": "number"},
            {"name": "category", "path": "category", "type": "categorical", "vocabulary": ["x", "y"], "missing": "impute"},
            {"name": "new", "path": "new", "type": "bool"},
        ]))
        .unwrap();
        let about: About = serde_json::from_value(json!({"steps": 1, "golden": [], "marginals": [
            {"quantiles": [0, 24]}, {"quantiles": [0, 6]}, {"quantiles": [0, 9]}, {"shares": [0.5, 0.5]}, {"shares": [0.5, 0.5]}]}))
        .unwrap();
        let given: Vec<_> = given
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect();
        Conditions::parse(&given, &features, &about)
    }

    #[test]
    fn values_of_every_type() {
        let all = parsed(&[
            ("hour", "13.5"),
            ("weekday", "Sunday"),
            ("sum.amount", "2"),
            ("category", "y"),
            ("new", "true"),
        ]);
        let all = all.unwrap();
        assert_eq!(all.x, [13.5, 6.0, 2.0, 1.0, 1.0]);
        assert_eq!(all.known, [1.0; 5]);
        let missing = parsed(&[("category", "null")]).unwrap();
        assert!(missing.x[3].is_nan());
        assert_eq!(missing.known, [0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (name, value, said) in [
            ("amont", "1", "did you mean `amount`?"),
            ("zzz", "1", "hour, weekday, amount"),
            ("time", "1", "name one of hour, weekday"),
            ("amount", "much", "must be a number"),
            ("amount", "NaN", "from 0 to 9"),
            ("amount", "10", "from 0 to 9"),
            ("amount", "null", "every record"),
            ("category", "z", "one of x, y"),
            ("new", "yes", "true or false"),
            ("hour", "24", "below 24"),
            ("weekday", "7", "monday"),
        ] {
            let problem = parsed(&[(name, value)]).unwrap_err();
            assert!(problem.contains(said), "{problem}");
        }
        assert!(
            parsed(&[("new", "1"), ("new", "0")])
                .unwrap_err()
                .contains("twice")
        );
    }
}
