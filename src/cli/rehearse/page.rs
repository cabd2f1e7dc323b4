//! The report of a rehearsal as one HTML page without scripts, so that it can be mailed or archived.

use askama::Template;

use super::report::{Report, StrengthReport};
use super::rules::Evaluated;
use super::text::{share, state};
use crate::evaluation::share::Share;

#[derive(Template)]
#[template(path = "rehearsal/page.html")]
struct Page<'a> {
    report: &'a Report,
}

impl Page<'_> {
    const STYLE: &'static str = include_str!("page.css");

    fn share(share_of: &Share) -> String {
        share(share_of)
    }

    fn state(rule: &Evaluated) -> String {
        state(rule)
    }

    /// The width of a bar in per cent.
    fn percent(share_of: &f64) -> String {
        format!("{:.2}", 100.0 * share_of)
    }

    fn strength(of: &StrengthReport) -> String {
        of.strength.map_or("any".to_owned(), |s| s.to_string())
    }
}

/// Returns the page.
pub fn html(report: &Report) -> String {
    Page { report }
        .render()
        .expect("a page renders into memory")
}
