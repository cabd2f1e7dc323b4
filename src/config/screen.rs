//! `[screen]`: use of the screen, which finds clearly normal records.

use super::settings::Settings;

/// Settings for the bundle's screen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScreenSettings {
    pub mode: ScreenMode,
    /// Maximum share of the records that the scorer would flag and the screen may clear, in (0, 1).
    pub missed_share: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreenMode {
    /// Every record is scored.
    Off,
    /// Clearly normal records are not scored.
    On,
    /// Every record is scored, and anomalies that the screen would have missed are counted.
    Audit,
}

impl ScreenSettings {
    pub(super) fn parse(s: &mut Settings) -> ScreenSettings {
        let modes = [
            ("off", ScreenMode::Off),
            ("on", ScreenMode::On),
            ("audit", ScreenMode::Audit),
        ];
        let mode = s.choice("screen.mode", &modes);
        let in_between = |share: f64| share > 0.0 && share < 1.0;
        let share = s.number("screen.missed_share", "between 0 and 1", in_between);
        ScreenSettings {
            mode: mode.unwrap_or(ScreenMode::Off),
            missed_share: share.unwrap_or(0.001),
        }
    }
}
