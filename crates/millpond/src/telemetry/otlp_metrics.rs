//! The same metrics over OTLP: read from what Prometheus is given, so that both have the same names, labels and values.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::metrics::v1::{exemplar, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource as WireResource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use prost::Message;

use super::exemplars;
use super::export_counts::METRICS;
use super::otlp_http::OtlpReceiver;
use crate::config::variable;

/// How often metrics are sent where `OTEL_METRIC_EXPORT_INTERVAL` says nothing.
const EXPORT_EVERY: Duration = Duration::from_secs(60);

static EXPORT: OnceLock<MetricsExport> = OnceLock::new();

/// Where the metrics of this process are sent.
#[derive(Debug)]
pub struct MetricsExport {
    receiver: OtlpReceiver,
    resource: WireResource,
    started: SystemTime,
    /// How often.
    pub every: Duration,
}

/// Has metrics sent from now on; the error is a reason for a person.
pub(super) fn export(resource: &Resource) -> Result<(), String> {
    let every = variable("OTEL_METRIC_EXPORT_INTERVAL");
    let every = every.map(|text| text.parse().map(Duration::from_millis).map_err(|_| text)).transpose();
    let wrong = |text| format!("OTEL_METRIC_EXPORT_INTERVAL {text:?} must be a number of milliseconds, 1 at least");
    let every = every.and_then(|every| match every {
        Some(Duration::ZERO) => Err("0".to_owned()),
        every => Ok(every),
    });
    let every = every.map_err(wrong)?.unwrap_or(EXPORT_EVERY);
    let receiver = OtlpReceiver::from_env(METRICS.signal)?;
    let attributes = ResourceAttributesWithSchema::from(resource).attributes.0;
    let resource = WireResource { attributes, ..WireResource::default() };
    let _ = EXPORT.set(MetricsExport { receiver, resource, started: SystemTime::now(), every });
    Ok(())
}

impl MetricsExport {
    /// That of this process; none where it sends no metrics.
    #[must_use]
    pub fn of_process() -> Option<&'static Self> {
        EXPORT.get()
    }

    /// Sends metrics, as [`Metrics::render`](super::Metrics::render) has them. It blocks, for as long as an export may take.
    pub fn send(&self, rendered: &str) {
        let scope = InstrumentationScope {
            name: "millpond".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let metrics = read(rendered, (nanoseconds(self.started), nanoseconds(SystemTime::now())));
        let scoped = ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() };
        let resource = Some(self.resource.clone());
        let of_process = ResourceMetrics { resource, scope_metrics: vec![scoped], schema_url: String::new() };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![of_process] };
        if METRICS.lets_in() {
            let sent = self.receiver.send(request.encode_to_vec());
            METRICS.left(1, &sent.map(drop).map_err(OTelSdkError::InternalFailure));
        }
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The labels of a sample.
type Labels = Vec<(String, String)>;

/// A histogram as it is rendered: how many were at most this long, by bound; their sum and number.
#[derive(Default)]
struct Buckets {
    up_to: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

/// Reads the text of Prometheus's format (<https://prometheus.io/docs/instrumenting/exposition_formats/>), as our exporter writes it.
fn read(text: &str, (started, now): (u64, u64)) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    let (mut family, mut buckets) = (("", ""), BTreeMap::<Labels, Buckets>::new());
    for line in text.lines().chain(["# TYPE  "]) {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            metrics.extend(histogram(family.0, std::mem::take(&mut buckets), (started, now)));
            family = declared.split_once(' ').unwrap_or_default();
        } else if let Some((name, labels, value)) = (!line.starts_with('#')).then(|| sample(line)).flatten() {
            if family.1 == "histogram" {
                add(&mut buckets, name.strip_prefix(family.0).unwrap_or_default(), labels, value);
                continue;
            }
            let point = NumberDataPoint {
                attributes: attributes(labels),
                start_time_unix_nano: if family.1 == "counter" { started } else { 0 },
                time_unix_nano: now,
                value: Some(number_data_point::Value::AsDouble(value)),
                ..NumberDataPoint::default()
            };
            match metrics.last_mut().filter(|last| last.name == name).and_then(|last| last.data.as_mut()) {
                Some(Data::Sum(sum)) => sum.data_points.push(point),
                Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
                _ => metrics.push(metric(name, number(family.1, point))),
            }
        }
    }
    metrics
}

fn number(family: &str, point: NumberDataPoint) -> Data {
    let data_points = vec![point];
    if family != "counter" {
        return Data::Gauge(Gauge { data_points });
    }
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true })
}

fn metric(name: &str, data: Data) -> Metric {
    let units = [("_seconds", "s"), ("_bytes", "By")];
    let unit = units.into_iter().find_map(|(end, unit)| name.ends_with(end).then(|| unit.to_owned()));
    Metric { name: name.to_owned(), unit: unit.unwrap_or_default(), data: Some(data), ..Metric::default() }
}

fn add(buckets: &mut BTreeMap<Labels, Buckets>, part: &str, mut labels: Labels, value: f64) {
    let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
    let of = buckets.entry(labels).or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was rendered")]
    let count = value as u64;
    match (part, bound.and_then(|bound| bound.parse::<f64>().ok())) {
        ("_bucket", Some(bound)) if bound.is_finite() => of.up_to.push((bound, count)),
        ("_sum", _) => of.sum = value,
        ("_count", _) => of.count = count,
        _ => {}
    }
}

fn histogram(name: &str, buckets: BTreeMap<Labels, Buckets>, (started, now): (u64, u64)) -> Option<Metric> {
    let point = |(labels, Buckets { up_to, sum, count }): (Labels, Buckets)| {
        let below = [0].into_iter().chain(up_to.iter().map(|(_, n)| *n));
        let ends = up_to.iter().map(|(_, n)| *n).chain([count]);
        HistogramDataPoint {
            exemplars: exemplars::take(name, &labels).into_iter().map(exemplar).collect(),
            attributes: attributes(labels),
            start_time_unix_nano: started,
            time_unix_nano: now,
            count,
            sum: Some(sum),
            bucket_counts: ends.zip(below).map(|(end, below)| end.saturating_sub(below)).collect(),
            explicit_bounds: up_to.iter().map(|(bound, _)| *bound).collect(),
            ..HistogramDataPoint::default()
        }
    };
    let data_points: Vec<_> = buckets.into_iter().map(point).collect();
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    (!data_points.is_empty()).then(|| metric(name, Data::Histogram(Histogram { data_points, aggregation_temporality })))
}

fn exemplar(of: exemplars::Exemplar) -> Exemplar {
    Exemplar {
        time_unix_nano: nanoseconds(of.at),
        span_id: of.trace.span_bytes().to_vec(),
        trace_id: of.trace.trace_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(of.seconds)),
        ..Exemplar::default()
    }
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    let attribute = |(key, value)| KeyValue {
        key,
        value: Some(AnyValue { value: Some(Value::StringValue(value)) }),
        ..KeyValue::default()
    };
    labels.into_iter().map(attribute).collect()
}

/// The name, the labels and the value of a line.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
            let end = end_of(quoted)?;
            let (value, after) = quoted.split_at(end);
            labels.push((label.to_owned(), unescaped(value)));
            rest = after.get(1..)?;
        }
        rest = rest.get(1..)?;
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

/// Where the text of a label ends that began before `text`.
fn end_of(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn unescaped(text: &str) -> String {
    let (mut plain, mut escaped) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        match (std::mem::take(&mut escaped), c) {
            (true, 'n') => plain.push('\n'),
            (false, '\\') => escaped = true,
            (_, c) => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_is_given_is_read() {
        let text = "# TYPE millpond_attempts_total counter\n\
                    millpond_attempts_total{kind=\"a\\\"b\\\\\\nc\",status=\"done\"} 3\n\
                    millpond_attempts_total{kind=\"x\",status=\"failed\"} 1\n\n\
                    # TYPE millpond_connected gauge\n\
                    millpond_connected 1\n\n\
                    # TYPE millpond_message_run_seconds histogram\n\
                    millpond_message_run_seconds_bucket{kind=\"a\",le=\"0.5\"} 2\n\
                    millpond_message_run_seconds_bucket{kind=\"a\",le=\"1\"} 5\n\
                    millpond_message_run_seconds_bucket{kind=\"a\",le=\"+Inf\"} 6\n\
                    millpond_message_run_seconds_sum{kind=\"a\"} 4.5\n\
                    millpond_message_run_seconds_count{kind=\"a\"} 6\n";
        let metrics = read(text, (1, 2));
        let [attempts, connected, run] = metrics.as_slice() else { panic!("{metrics:?}") };
        let Some(Data::Sum(sum)) = &attempts.data else { panic!("{attempts:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
        let values: Vec<_> = sum.data_points.iter().map(|point| point.value).collect();
        assert_eq!(values, [3.0, 1.0].map(|n| Some(number_data_point::Value::AsDouble(n))));
        assert_eq!(
            sum.data_points[0].attributes,
            attributes(vec![("kind".into(), "a\"b\\\nc".into()), ("status".into(), "done".into())])
        );
        assert!(matches!(&connected.data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 1), "{connected:?}");
        let Some(Data::Histogram(histogram)) = &run.data else { panic!("{run:?}") };
        let [point] = histogram.data_points.as_slice() else { panic!("{histogram:?}") };
        assert_eq!((run.unit.as_str(), point.count, point.sum), ("s", 6, Some(4.5)));
        assert_eq!(
            (point.explicit_bounds.as_slice(), point.bucket_counts.as_slice()),
            (&[0.5, 1.0][..], &[2, 3, 1][..])
        );
    }
}
