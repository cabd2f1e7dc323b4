//! Counts the values of a label column: a misspelled normal value would make every record an anomaly and every result wrong.

use std::collections::BTreeMap;

/// Distinct values that are kept; others are counted together.
const KEPT: usize = 1000;
/// Values that an error names, and characters of each.
const TOLD: usize = 8;
const LONGEST: usize = 40;

#[derive(Debug, Default)]
pub struct Labels {
    normal: u64,
    null: u64,
    others: BTreeMap<String, u64>,
    /// Labels beyond [`KEPT`] different ones.
    more: u64,
}

impl Labels {
    /// Counts a label, and whether it is the normal one.
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
        if self.others.len() == KEPT && !self.others.contains_key(&label) {
            self.more += 1;
            return;
        }
        *self.others.entry(label).or_default() += 1;
    }

    /// Why the labels are useless, if there are labels but none is the normal one.
    pub fn fault(&self, field: &str, normal: &str) -> Option<String> {
        let labelled = self.others.values().sum::<u64>() + self.more;
        if self.normal > 0 || labelled + self.null == 0 {
            return None;
        }
        let mut values: Vec<_> = self.others.iter().collect();
        values.sort_by_key(|(_, records)| std::cmp::Reverse(**records));
        let told = values.iter().take(TOLD);
        let mut told: Vec<String> = told.map(|(label, n)| format!("`{label}` ({n})")).collect();
        let more = values.iter().skip(TOLD).map(|(_, n)| **n).sum::<u64>() + self.more;
        for (what, records) in [("null", self.null), ("other values", more)] {
            if records > 0 {
                told.push(format!("{what} ({records})"));
            }
        }
        Some(format!(
            "no record has the label of a normal one: `{field}` is never `{normal}`, it holds {}. Name the normal value with --normal",
            told.join(", ")
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
            "no record has the label of a normal one: `class` is never `0`, it holds `DDoS` (3), `BENIGN\\u{1b}` (1), null (1). \
             Name the normal value with --normal"
        );
        labels.take(Some("0"), true);
        assert_eq!(labels.fault("class", "0"), None);
    }

    #[test]
    fn a_column_of_numbers_fills_no_memory() {
        let mut labels = Labels::default();
        (0..5000).for_each(|n| labels.take(Some(&n.to_string()), false));
        assert_eq!((labels.others.len(), labels.more), (KEPT, 4000));
        assert!(
            labels
                .fault("id", "x")
                .unwrap()
                .contains("other values (4992)")
        );
    }
}
