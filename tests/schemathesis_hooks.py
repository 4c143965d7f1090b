"""What schemathesis has to be told: what a line of JSON is (it makes any text, of which most would be refused), and that
a job of a queue that nobody serves is waited for without an end, so waits are tried on one that a worker serves. What does not go
together, which the document cannot say, is taken apart: tests/producer_http.rs tries it. Nothing is waited for for minutes."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    if isinstance(value, bytes):
        return value
    lines = value if isinstance(value, str) and value.endswith("\n") else json.dumps(value)
    return lines.encode("utf-8", "surrogatepass")


@schemathesis.deserializer("application/x-ndjson")
def text(ctx, response):
    return response.text


@schemathesis.hook
def before_call(ctx, case, kwargs):
    query, headers = case.query or {}, case.headers or {}
    if case.operation.path == "/api/v1/dead_letter" and query.get("id") == "order-7":
        query["id"] = "order-8"
    if case.operation.path == "/v1/tasks/{queue}/{kind}" and str(query.get("wait", "")).endswith("m"):
        query["wait"] = "1s"
    if case.operation.path != "/v1/jobs/{queue}/{kind}":
        return
    if query.get("wait") in (True, "true"):
        case.path_parameters = {"queue": "default", "kind": "echo"}
        headers.pop("Idempotency-Key", None)
    else:
        query.pop("ordered", None)
    if "Idempotency-Key" in headers:
        query.pop("job", None)
        query.pop("batch", None)
