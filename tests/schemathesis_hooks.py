"""What schemathesis has to be told: newline-delimited JSON is text as it is, and a job of a queue that nobody serves
is waited for without an end, so waits are tried on one that a worker serves."""

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.deserializer("application/x-ndjson")
def text(ctx, response):
    return response.text


@schemathesis.hook
def before_call(ctx, case, kwargs):
    waits = (case.query or {}).get("wait") in (True, "true")
    if waits and case.operation.path == "/v1/jobs/{queue}/{kind}":
        case.path_parameters = {"queue": "default", "kind": "echo"}
