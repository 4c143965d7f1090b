# A Logstash `ruby` filter: one request of OTLP in JSON (/v1/traces or /v1/logs) becomes a document for each span, for each
# event of a span, and for each log record, in the shape of OpenTelemetry's mapping in Elasticsearch. Which service, worker and
# pod it was, and where it runs, is in each of them. tests/elk/filter_test.rb runs this file.

KINDS = %w[Unspecified Internal Server Client Producer Consumer].freeze
STATUSES = %w[Unset Ok Error].freeze
# Which task a span is of.
OF_TASK = %w[task_id kind queue job attempt].freeze
SEVERITY_ERROR = 17

def register(params)
  @namespace = params["namespace"]
  @environment = params["environment"]
end

def filter(event)
  documents = spans(event.get("resourceSpans")) + records(event.get("resourceLogs"))
  if documents.empty? && !event.get("resourceSpans") && !event.get("resourceLogs")
    event.tag("_not_otlp")
    return [event]
  end
  documents.map { |document| LogStash::Event.new(document) }
end

def spans(resources)
  each_scoped(resources, "scopeSpans", "spans").flat_map do |about, span|
    events = span["events"] || []
    [span_document(about, span)] + events.map { |event| event_document(about, span, event) }
  end
end

def records(resources)
  each_scoped(resources, "scopeLogs", "logRecords").map { |about, record| record_document(about, record) }
end

# Every item with what all of its scope have in common.
def each_scoped(resources, scopes, items)
  (resources || []).flat_map do |resource|
    of_resource = attributes(resource.dig("resource", "attributes"))
    of_resource["deployment.environment.name"] ||= @environment
    (resource[scopes] || []).flat_map do |scope|
      of_scope = (scope["scope"] || {}).slice("name", "version")
      (scope[items] || []).map { |item| [{ "resource" => { "attributes" => of_resource }, "scope" => of_scope }, item] }
    end
  end
end

def span_document(about, span)
  started = span["startTimeUnixNano"].to_i
  status = span["status"] || {}
  document(about, "traces", started, span).merge(
    filled("parent_span_id" => span["parentSpanId"], "trace_state" => span["traceState"]),
    "name" => span["name"],
    "kind" => KINDS[span["kind"].to_i],
    "duration" => span["endTimeUnixNano"].to_i - started,
    "status" => filled("code" => STATUSES[status["code"].to_i], "message" => status["message"]),
    "links" => (span["links"] || []).map { |link| { "trace_id" => link["traceId"], "span_id" => link["spanId"] } },
  )
end

# An event of a span is a line of its own among the logs, as the Collector's exporter has it; with the task that the span is of,
# and an exception with a message and a severity, as each other line has them.
def event_document(about, span, event)
  line = document(about, "logs", event["timeUnixNano"].to_i, event.merge(span.slice("traceId", "spanId")))
  of_task = attributes(span["attributes"]).slice(*OF_TASK)
  line["attributes"] = of_task.merge(line["attributes"], "event.name" => event["name"])
  line = line.merge("event_name" => event["name"])
  return line unless event["name"] == "exception"

  said = line["attributes"].values_at("exception.type", "exception.message").compact.join(": ")
  line.merge("severity_text" => "ERROR", "severity_number" => SEVERITY_ERROR, "body" => { "text" => said })
end

def record_document(about, record)
  observed = record["observedTimeUnixNano"].to_i
  time = record["timeUnixNano"].to_i
  body = value(record["body"])
  document(about, "logs", time.zero? ? observed : time, record).merge(
    filled(
      "severity_text" => record["severityText"],
      "severity_number" => record["severityNumber"],
      "event_name" => record["eventName"],
      "observed_timestamp" => observed.zero? ? nil : timestamp(observed),
    ),
    "body" => body.is_a?(Hash) ? { "structured" => body } : { "text" => body.to_s },
  )
end

def document(about, type, nanoseconds, item)
  about.merge(
    filled("trace_id" => item["traceId"], "span_id" => item["spanId"]),
    "@timestamp" => timestamp(nanoseconds),
    "data_stream" => { "type" => type, "dataset" => "millpond.otel", "namespace" => @namespace },
    "attributes" => attributes(item["attributes"]),
  )
end

def filled(fields)
  fields.reject { |_, value| value.nil? || value == "" }
end

def timestamp(nanoseconds)
  seconds, rest = nanoseconds.divmod(1_000_000_000)
  format("%s.%09dZ", Time.at(seconds).utc.strftime("%Y-%m-%dT%H:%M:%S"), rest)
end

def attributes(list)
  (list || []).to_h { |attribute| [attribute["key"], value(attribute["value"])] }
end

# Integers of 64 bits are strings in OTLP's JSON.
def value(any)
  type, content = (any || {}).first
  case type
  when "intValue" then content.to_i
  when "arrayValue" then (content["values"] || []).map { |each| value(each) }
  when "kvlistValue" then attributes(content["values"])
  else content
  end
end
