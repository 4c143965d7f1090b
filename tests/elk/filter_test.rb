# deploy/logstash/otlp.rb on requests as the Collector sends them. Needs ruby, or jruby; no Logstash.
require_relative "logstash_event"
load File.join(__dir__, "../../deploy/logstash/otlp.rb")

def check(what, expected, got)
  return if expected == got
  warn "#{what}: expected #{expected.inspect}, got #{got.inspect}"
  exit 1
end

def text(key, value) = { "key" => key, "value" => { "stringValue" => value } }

register({ "namespace" => "default", "environment" => "test" })
resource = { "attributes" => [text("service.name", "millpond-worker"), text("service.instance.id", "w1")] }
ids = { "traceId" => "0af7651916cd43dd8448eb211c80319c", "spanId" => "b7ad6b7169203331" }
attempt = ids.merge(
  "parentSpanId" => "00f067aa0ba902b7", "name" => "process tasks.default.story", "kind" => 5,
  "startTimeUnixNano" => "1795476816947043745", "endTimeUnixNano" => "1795476816947146127",
  "attributes" => [text("task_id", "order-7"), { "key" => "attempt", "value" => { "intValue" => "2" } }],
  "links" => [{ "traceId" => ids["traceId"], "spanId" => "00f067aa0ba902b7" }],
  "status" => { "code" => 2, "message" => "no" },
  "events" => [{ "timeUnixNano" => "1795476816947146000", "name" => "exception", "attributes" => [text("exception.type", "ValueError"), text("exception.message", "no")] }],
)
first = ids.merge("spanId" => "00f067aa0ba902b7", "parentSpanId" => "", "name" => "publish tasks.default.story", "kind" => 4,
                  "startTimeUnixNano" => "1795476816000000001", "endTimeUnixNano" => "1795476817000000001", "status" => {})
request = { "resourceSpans" => [
  { "resource" => resource, "scopeSpans" => [{ "scope" => { "name" => "millpond", "version" => "0.1.0" }, "spans" => [attempt, first] }, { "spans" => [] }] },
  { "resource" => {}, "scopeSpans" => [{ "scope" => {}, "spans" => [first] }] },
] }
span, exception, publish, other = documents = filter(LogStash::Event.new(request)).map(&:to_hash)
check "documents: three spans, and an event", 4, documents.length
check "span", {
  "@timestamp" => "2026-11-23T23:33:36.947043745Z", "trace_id" => ids["traceId"], "span_id" => ids["spanId"],
  "parent_span_id" => "00f067aa0ba902b7", "name" => "process tasks.default.story", "kind" => "Consumer", "duration" => 102_382,
  "status" => { "code" => "Error", "message" => "no" }, "links" => [{ "trace_id" => ids["traceId"], "span_id" => "00f067aa0ba902b7" }],
  "attributes" => { "task_id" => "order-7", "attempt" => 2 }, "scope" => { "name" => "millpond", "version" => "0.1.0" },
  "resource" => { "attributes" => { "service.name" => "millpond-worker", "service.instance.id" => "w1", "deployment.environment.name" => "test" } },
  "data_stream" => { "type" => "traces", "dataset" => "millpond.otel", "namespace" => "default" },
}, span
check "event of a span", ["logs", "exception", ids["spanId"], "ERROR", 17, { "text" => "ValueError: no" }],
      [exception["data_stream"]["type"], *exception.values_at("event_name", "span_id", "severity_text", "severity_number", "body")]
check "the task of an event", { "exception.type" => "ValueError", "exception.message" => "no", "event.name" => "exception",
                                "task_id" => "order-7", "attempt" => 2 }, exception["attributes"]
check "the first of a trace", [false, "Unset", []], [publish.key?("parent_span_id"), publish["status"]["code"], publish["links"]]
check "of another resource", { "deployment.environment.name" => "test" }, other["resource"]["attributes"]

line = ids.merge("observedTimeUnixNano" => "1795476816947043745", "timeUnixNano" => "0", "severityText" => "WARN", "severityNumber" => 13,
                 "body" => { "stringValue" => "line 1" }, "attributes" => [
                   { "key" => "list", "value" => { "arrayValue" => { "values" => [{ "doubleValue" => 1.5 }, { "boolValue" => true }] } } },
                   { "key" => "map", "value" => { "kvlistValue" => { "values" => [text("a", "b")] } } }, { "key" => "none", "value" => {} }
                 ])
structured = { "timeUnixNano" => "1795476816000000000", "body" => { "kvlistValue" => { "values" => [text("a", "b")] } } }
logs = { "resourceLogs" => [{ "resource" => resource, "scopeLogs" => [{ "scope" => {}, "logRecords" => [line, structured] }] }] }
line, structured = filter(LogStash::Event.new(logs)).map(&:to_hash)
check "line", ["2026-11-23T23:33:36.947043745Z", "WARN", 13, { "text" => "line 1" }, ids["traceId"]],
      line.values_at("@timestamp", "severity_text", "severity_number", "body", "trace_id")
check "values", { "list" => [1.5, true], "map" => { "a" => "b" }, "none" => nil }, line["attributes"]
check "a line without a trace", [false, { "structured" => { "a" => "b" } }], [structured.key?("trace_id"), structured["body"]]

check "an empty request", [], filter(LogStash::Event.new({ "resourceLogs" => [] }))
stranger = LogStash::Event.new({ "hello" => 1 })
check "no OTLP", [[stranger], ["_not_otlp"]], [filter(stranger), stranger.tags]
puts "otlp.rb: as it should be"
