"""Of one trace in Elasticsearch: so many publishes, waits, attempts, exceptions and lines of children, and no more; and a line of
the worker for each exception.

    check.py ELASTICSEARCH TRACE TASK PUBLISHES WAITS ATTEMPTS EXCEPTIONS LINES
"""

import json
import sys
import time
import urllib.request

WAITS_FOR_S = 60
# So long the counts have to stay as they are.
QUIET_S = 3


def search(url, streams, field, value):
    query = {"size": 1000, "query": {"term": {field: value}}, "sort": ["@timestamp"]}
    request = urllib.request.Request(
        f"{url}/{streams}/_search?ignore_unavailable=true", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(f"{url}/_refresh").read()
    with urllib.request.urlopen(request) as answer:
        return [hit["_source"] for hit in json.load(answer)["hits"]["hits"]]


def story(url, trace):
    spans = search(url, "traces-*.otel-*", "trace_id", trace)
    lines = search(url, "logs-*.otel-*", "trace_id", trace)
    events = [line for line in lines if "event.name" in line["attributes"]]
    failures = [line for line in lines if line["event_name"] in ("millpond.attempt.failed", "millpond.task.dead_letter")]
    return spans, events, [line for line in lines if line not in events and line not in failures], failures


def counts(spans, events, lines, failures):
    operations = [span["name"].split(" ")[0] for span in spans]
    return [operations.count(name) for name in ("publish", "wait", "process")] + [len(events), len(lines), len(failures)]


def main():
    url, trace, task = sys.argv[1:4]
    expected = [int(number) for number in sys.argv[4:]]
    expected.append(expected[3])
    until = time.monotonic() + WAITS_FOR_S
    while counts(*story(url, trace)) != expected and time.monotonic() < until:
        time.sleep(0.3)
    time.sleep(QUIET_S)
    spans, events, lines, failures = found = story(url, trace)
    if counts(*found) != expected:
        sys.exit(f"{task}: expected {expected}, got {counts(*found)}: {json.dumps(found, indent=1)[:3000]}")
    assert len(spans) == sum(expected[:3]), "no other spans"
    if not any(expected):
        return print(f"{task}: nothing yet")
    attempts = {span["span_id"]: span for span in spans if span["name"].startswith("process")}
    publish = next(span for span in spans if span["name"].startswith("publish"))
    assert "parent_span_id" not in publish, publish
    for span in spans:
        assert span["attributes"]["messaging.system"] == "nats" and span["duration"] >= 0, span
        assert span["resource"]["attributes"]["deployment.environment.name"] == "test", "enriched"
    for line in lines:
        attempt = attempts[line["span_id"]]
        assert line["attributes"]["attempt"] == attempt["attributes"]["attempt"], line
        assert line["body"]["text"].startswith("line ") and line["attributes"]["child"], line
        assert line["severity_text"] == "WARN" and line["event_name"] == "millpond.child.line", line
    for event in events:
        assert event["event_name"] == "exception" and attempts[event["span_id"]]["status"]["code"] == "Error", event
        assert event["severity_text"] == "ERROR" and event["body"]["text"], event
    for line in events + failures:
        about = line["attributes"]
        assert about["kind"] == "story" and about["queue"] == "default" and about["exception.type"] and about["task_id"], line
    # As people search: by the name of APM, by task, by service, without prefixes.
    for streams, field, value, count in [
        ("logs-*", "trace.id", trace, len(events) + len(lines) + len(failures)),
        ("logs-*", "log.level", "ERROR", None),
        ("traces-*", "trace.id", trace, len(spans)),
    ]:
        got = len(search(url, streams, field, value))
        assert got == count if count is not None else not failures or got > 0, f"{streams} by {field}: {got}"
    assert any(hit["trace_id"] == trace for hit in search(url, "traces-*", "task_id", task)), "by task_id"
    workers = search(url, "traces-*", "service.name", "millpond-worker")
    assert {hit["resource"]["attributes"]["service.name"] for hit in workers} == {"millpond-worker"}, "by service.name"
    print(f"{task}: publishes, waits, attempts, exceptions, lines, lines of failures: {counts(*found)}")


main()
