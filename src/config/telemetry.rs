//! `[telemetry]`: logs and traces.

use super::log_filter;
use super::settings::Settings;

#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    pub log_level: String,
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// URL of an OpenTelemetry collector, without `/v1/traces`.
    pub endpoint: String,
    /// Share of the records without a trace for which one is started, in [0, 1].
    pub sample_ratio: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl TelemetrySettings {
    pub(super) fn parse(s: &mut Settings) -> TelemetrySettings {
        let telemetry = TelemetrySettings {
            log_level: s.text("telemetry.log_level"),
            log_format: s
                .choice(
                    "telemetry.log_format",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                )
                .unwrap_or(LogFormat::Text),
        };
        if let Err(problem) = log_filter::parse(&telemetry.log_level) {
            s.problem(format!(
                "telemetry.log_level = \"{}\": {problem}",
                telemetry.log_level
            ));
        }
        telemetry
    }
}

impl TraceSettings {
    pub(super) fn parse(s: &mut Settings) -> Option<TraceSettings> {
        let endpoint = s.url(
            "telemetry.otlp_endpoint",
            "http://localhost:4318",
            "set headers with OTEL_EXPORTER_OTLP_HEADERS instead",
        );
        let ratio = s.number("telemetry.trace_sample_ratio", "from 0 to 1", |ratio| {
            (0.0..=1.0).contains(&ratio)
        });
        let sample_ratio = ratio.unwrap_or_default();
        if endpoint.is_none() && sample_ratio > 0.0 {
            s.problem("telemetry.trace_sample_ratio requires telemetry.otlp_endpoint".into());
        }
        endpoint.map(|endpoint| TraceSettings {
            endpoint,
            sample_ratio,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::TraceSettings;
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn traces_go_where_they_are_told_and_are_off_otherwise() {
        assert_eq!(load(SMALLEST, &[], &[]).unwrap().traces, None);
        let endpoint = "telemetry.otlp_endpoint=http://collector:4318/";
        let ratio = "telemetry.trace_sample_ratio=0.5";
        let traces = load(SMALLEST, &[], &[endpoint, ratio]).unwrap().traces;
        let expected = TraceSettings {
            endpoint: "http://collector:4318".into(),
            sample_ratio: 0.5,
        };
        assert_eq!(traces, Some(expected));
        for (flags, said) in [
            (&[ratio][..], "requires telemetry.otlp_endpoint"),
            (
                &[endpoint, "telemetry.trace_sample_ratio=1.5"],
                "a number from 0 to 1",
            ),
            (
                &["telemetry.otlp_endpoint=collector:4318"],
                "expected http://",
            ),
            (
                &["telemetry.otlp_endpoint=http://me:pw@collector"],
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let error = load(SMALLEST, &[], flags).unwrap_err();
            assert!(error.contains(said), "{said}\nnot in\n{error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }
}
