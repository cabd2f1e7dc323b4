//! Counts the values of a label column to find a misspelled normal value, which would make every record an anomaly.

use std::collections::BTreeMap;

/// Maximum number of distinct values that are counted one by one. Others are counted together.
const MOST_COUNTED: usize = 1000;
/// Maximum number of values that an error lists.
const MOST_LISTED: usize = 8;
/// Maximum length of a value, in characters.
const LONGEST: usize = 40;

#[derive(Debug, Default)]
pub struct Labels {
    normal: u64,
    null: u64,
    others: BTreeMap<String, u64>,
    /// Number of labels beyond the first [`MOST_COUNTED`] distinct ones.
    more: u64,
}

impl Labels {
    /// Counts a label. `normal` tells whether it is the label of normal records.
    pub fn take(&mut self, label: Option<&str>, normal: bool) {
        let Some(label) = label else {
            self.null += 1;
            return;
        };
        if normal {
            self.normal += 1;
            return;
        }
        let label: String = label.escape_debug().take(LONGEST).collect();
        if self.others.len() == MOST_COUNTED && !self.others.contains_key(&label) {
            self.more += 1;
            return;
        }
        *self.others.entry(label).or_default() += 1;
    }

    /// Returns a message if there are labels but no record has the normal one.
    pub fn fault(&self, field: &str, normal: &str) -> Option<String> {
        let labelled = self.others.values().sum::<u64>() + self.more;
        if self.normal > 0 || labelled + self.null == 0 {
            return None;
        }
        let mut values: Vec<_> = self.others.iter().collect();
        values.sort_by_key(|(_, records)| std::cmp::Reverse(**records));
        let listed = values.iter().take(MOST_LISTED);
        let mut listed: Vec<String> = listed
            .map(|(label, n)| format!("`{label}` ({n})"))
            .collect();
        let more = values
            .iter()
            .skip(MOST_LISTED)
            .map(|(_, n)| **n)
            .sum::<u64>()
            + self.more;
        for (what, records) in [("null", self.null), ("other values", more)] {
            if records > 0 {
                listed.push(format!("{what} ({records})"));
            }
        }
        Some(format!(
            "no record has the label of normal records: `{field}` is never `{normal}`. Its values are {}. Give the normal value with --normal",
            listed.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_without_the_normal_value_says_what_it_holds() {
        let mut labels = Labels::default();
        assert_eq!(labels.fault("class", "0"), None);
        for _ in 0..3 {
            labels.take(Some("DDoS"), false);
        }
        labels.take(Some("BENIGN\u{1b}"), false);
        labels.take(None, false);
        assert_eq!(
            labels.fault("class", "0").unwrap(),
            "no record has the label of normal records: `class` is never `0`. Its values are `DDoS` (3), `BENIGN\\u{1b}` (1), null (1). \
             Give the normal value with --normal"
        );
        labels.take(Some("0"), true);
        assert_eq!(labels.fault("class", "0"), None);
    }

    #[test]
    fn a_column_of_numbers_fills_no_memory() {
        let mut labels = Labels::default();
        (0..5000).for_each(|n| labels.take(Some(&n.to_string()), false));
        assert_eq!((labels.others.len(), labels.more), (MOST_COUNTED, 4000));
        assert!(
            labels
                .fault("id", "x")
                .unwrap()
                .contains("other values (4992)")
        );
    }
}
