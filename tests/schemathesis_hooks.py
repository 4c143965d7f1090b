"""What schemathesis has to be told: what a line of JSON is (it makes any text, of which most would be refused), and that
a job of a queue that nobody serves is waited for without an end, so waits are tried on one that a worker serves."""

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
    waits = (case.query or {}).get("wait") in (True, "true")
    if waits and case.operation.path == "/v1/jobs/{queue}/{kind}":
        case.path_parameters = {"queue": "default", "kind": "echo"}
