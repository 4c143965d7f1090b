//! The format of log lines: text for people, or JSON with the field names of the Elastic Common Schema
//! (<https://www.elastic.co/docs/reference/ecs>). Both name the task and the trace that a line belongs to.

use std::fmt::{self, Debug, Write};

use serde_json::{Map, Value};
use tracing::field::Visit;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, time::FormatTime, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

use super::fields::{FIELD_EXCEPTION_MESSAGE, FIELD_EXCEPTION_TYPE, FIELD_SPAN_ID, FIELD_STACKTRACE, FIELD_TRACE_ID};
use super::scope::{FieldValue, fields, ids};
use crate::visible::{visible, visible_json};

/// Version of the schema.
const ECS_VERSION: &str = "9.2.0";

/// How the name of an event begins that was given none: its place in the source follows.
pub(super) const NAMED_AFTER_PLACE: &str = "event ";

/// What stands between two lines of one text.
const CONTINUED: &str = "\n    | ";

/// How a log line is written.
pub(super) enum LineFormat {
    /// For people.
    Text { format: Format<Compact>, colours: bool },
    /// As a JSON object, with the service and its instance.
    Json(&'static str, String),
}

impl LineFormat {
    pub(super) fn text(colours: bool) -> Self {
        let format = tracing_subscriber::fmt::format().with_target(false).with_ansi(colours).compact();
        Self::Text { format, colours }
    }
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match self {
            Self::Text { format, colours } => {
                let mut line = String::new();
                format.format_event(context, Writer::new(&mut line), event)?;
                line.truncate(line.trim_end_matches('\n').len());
                let own = event.metadata().fields();
                let (mut result, mut below) = (Ok(()), String::new());
                fields(|name, value| {
                    if own.field(name).is_none() && result.is_ok() {
                        result = match value {
                            FieldValue::Text(text) => write!(line, " {name}={text}"),
                            FieldValue::Number(number) => write!(line, " {name}={number}"),
                            FieldValue::Object(object) => {
                                object.iter().try_for_each(|(name, value)| write!(line, " {name}={value}"))
                            }
                            // At the end, below the line.
                            FieldValue::Lines(text) => {
                                below = text.to_owned();
                                Ok(())
                            }
                        };
                    }
                });
                result?;
                if let Some((trace, _)) = ids() {
                    write!(line, " {FIELD_TRACE_ID}={trace}")?;
                }
                if !below.is_empty() {
                    line.push('\n');
                    line.push_str(&below);
                }
                write_line(&mut to, &line, *colours)
            }
            Self::Json(service, instance) => {
                let object = object(service, instance, event);
                let line = serde_json::to_string(&object).map_err(|_| fmt::Error)?;
                to.write_str(&visible_json(&line))?;
                to.write_char('\n')
            }
        }
    }
}

/// Writes a text so that nothing within it can stand for a line of its own, or change how a terminal shows it: what follows a
/// line end is marked, and what others wrote is seen for what it is. With colours, ESC may begin a colour and nothing else.
fn write_line(to: &mut Writer<'_>, text: &str, colours: bool) -> fmt::Result {
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            to.write_str(CONTINUED)?;
        }
        for (number, part) in line.split('\x1b').enumerate() {
            if number > 0 {
                let colour = part
                    .strip_prefix('[')
                    .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
                let is_colour = colours && colour.is_some_and(|rest| rest.starts_with('m'));
                to.write_str(if is_colour { "\x1b" } else { "\\u{1b}" })?;
            }
            to.write_str(&visible(part))?;
        }
    }
    to.write_char('\n')
}

fn object(service: &str, instance: &str, event: &Event<'_>) -> Map<String, Value> {
    let mut object = Map::new();
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let level = event.metadata().level().as_str().to_ascii_lowercase();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("@timestamp", time.into());
    put("log.level", level.into());
    put("message", Value::String(String::new()));
    put("ecs.version", ECS_VERSION.into());
    put("service.name", service.into());
    put("service.node.name", instance.into());
    put("log.logger", event.metadata().target().into());
    let name = event.metadata().name();
    if !name.starts_with(NAMED_AFTER_PLACE) {
        put("event.action", name.into());
    }
    if let Some((trace, span)) = ids() {
        put("trace.id", trace.into());
        put("span.id", span.into());
    }
    fields(|name, value| {
        let value = match value {
            FieldValue::Text(text) | FieldValue::Lines(text) => text.into(),
            FieldValue::Number(number) => number.into(),
            FieldValue::Object(object) => Value::Object(object.clone()),
        };
        put(ecs_name(name), value);
    });
    event.record(&mut EventFields(&mut object));
    object
}

/// The name of a field in the Elastic Common Schema.
fn ecs_name(field: &str) -> &str {
    match field {
        "error" | FIELD_EXCEPTION_MESSAGE => "error.message",
        FIELD_EXCEPTION_TYPE => "error.type",
        FIELD_STACKTRACE => "error.stack_trace",
        FIELD_TRACE_ID => "trace.id",
        FIELD_SPAN_ID => "span.id",
        name => name,
    }
}

/// Puts the fields of an event into an object.
struct EventFields<'a>(&'a mut Map<String, Value>);

impl EventFields<'_> {
    fn put(&mut self, field: &tracing::field::Field, value: Value) {
        self.0.insert(ecs_name(field.name()).to_owned(), value);
    }
}

impl Visit for EventFields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &tracing::field::Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::scope::{Scope, TaskFields};
    use super::super::trace::TraceContext;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn written(lines: LineFormat, log: impl FnOnce()) -> String {
        let written = Written::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(written.clone()).event_format(lines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    fn scope() -> Scope {
        let trace = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        Scope::new(TaskFields { task_id: "t".into(), queue: None, kind: Some("k".into()), attempt: 2 }, trace)
    }

    #[test]
    fn a_line_names_its_task_and_its_trace() {
        let said = written(LineFormat::text(false), || {
            tracing::info!("before");
            let _in = scope().enter();
            tracing::warn!(kind = "own", "within");
        });
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].ends_with("before"), "{said}");
        assert!(
            lines[1].ends_with("within kind=\"own\" task_id=t attempt=2 trace_id=0af7651916cd43dd8448eb211c80319c"),
            "{said}"
        );
    }

    #[test]
    fn a_line_of_others_stays_one_line_and_is_seen_as_it_is() {
        let said = written(LineFormat::text(false), || {
            let task_id = "t\u{202e}\u{1b}[2J".into();
            let _in = Scope::new(TaskFields { task_id, queue: None, kind: None, attempt: 1 }, None).enter();
            tracing::warn!(error = %"no\r\nINFO all is well\u{1b}[1m\u{9b}1m\u{202e}", "failed");
        });
        assert!(said.lines().skip(1).all(|line| line.starts_with("    | ")), "{said}");
        let unseen = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!said.contains(unseen), "{said:?}");
        assert!(said.contains("all is well"), "{said}");
        let said = written(LineFormat::Json("millpond-worker", "w1".into()), || tracing::warn!("a\u{9b}b"));
        assert!(said.contains("a\\u009bb"), "{said}");
    }

    #[test]
    fn no_text_forges_a_line() {
        let said = written(LineFormat::text(false), || {
            let task = TaskFields { task_id: "t\rx".into(), queue: None, kind: None, attempt: 1 };
            let _in = Scope::new(task, None).enter();
            tracing::info!("Traceback:\n  a\n2026-11-30T00:00:00Z ERROR forged \u{1b}[2K\r\u{202e}\u{85}end");
        });
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[1], "    |   a", "{said}");
        assert!(lines[2].starts_with("    | 2026-11-30T00:00:00Z ERROR forged "), "{said}");
        assert!(lines[2].ends_with("\\r\\u{202e}\\u{85}end task_id=t\\rx attempt=1"), "{said}");
        assert!(!said.contains(['\r', '\u{1b}', '\u{202e}', '\u{85}']) && lines.len() == 3, "{said}");
    }

    #[test]
    fn json_has_the_names_of_the_schema() {
        let said = written(LineFormat::Json("millpond-worker", "w1".into()), || {
            let _in = scope().enter();
            tracing::error!(error = %"no", count = 3, is = true, "failed");
        });
        let line: Value = serde_json::from_str(&said).unwrap();
        for (name, value) in [
            ("log.level", Value::from("error")),
            ("message", "failed".into()),
            ("service.name", "millpond-worker".into()),
            ("service.node.name", "w1".into()),
            ("trace.id", "0af7651916cd43dd8448eb211c80319c".into()),
            ("span.id", "b7ad6b7169203331".into()),
            ("error.message", "no".into()),
            ("task_id", "t".into()),
            ("attempt", 2.into()),
            ("count", 3.into()),
            ("is", true.into()),
        ] {
            assert_eq!(line[name], value, "{name}: {said}");
        }
        assert!(line["@timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
