"""Writes objects.ndjson, what Kibana imports: data views, searches, panels, and two dashboards, with fixed ids.

    python3 deploy/kibana/objects.py > deploy/kibana/objects.ndjson

A test compares the two, and every field that is named here with the index templates. `millpond`: tasks over time, failures,
slowest kinds, dead letters. `millpond-story`: all that there is of one task, by its id or its trace.
"""

import json

TRACES, LOGS, ALL = "millpond-traces", "millpond-logs", "millpond-all"
# A trace id, wherever it stands, leads to the story of its task.
STORY = (
    "/app/dashboards#/view/millpond-story?_g=(time:(from:now-30d,to:now))"
    "&_a=(query:(language:kuery,query:'trace_id:%22{{value}}%22'))"
)
ATTEMPTS = 'attributes.messaging.operation.name: "process"'
FAILED = f'{ATTEMPTS} and status.code: "Error"'


def put(kind, name, attributes, references=()):
    about = {"id": name, "type": kind, "coreMigrationVersion": "8.8.0", "typeMigrationVersion": "8.0.0"}
    print(json.dumps({**about, "attributes": attributes, "references": list(references)}))


def text(value):
    return json.dumps(value, separators=(",", ":"))


def data_view(name, title, pattern):
    formats = {
        "trace_id": {"id": "url", "params": {"urlTemplate": STORY, "labelTemplate": "{{value}}", "openLinkInCurrentTab": True}},
    }
    if name != LOGS:
        formats["duration"] = {"id": "duration", "params": {"inputFormat": "nanoseconds", "outputFormat": "humanizePrecise"}}
    put("index-pattern", name, {"name": title, "title": pattern, "timeFieldName": "@timestamp", "fieldFormatMap": text(formats)})


def source(query):
    where = {"query": {"language": "kuery", "query": query}, "filter": []}
    return {"searchSourceJSON": text({**where, "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index"})}


def of(view):
    return [{"name": "kibanaSavedObjectMeta.searchSourceJSON.index", "type": "index-pattern", "id": view}]


def search(name, title, view, query, columns, order):
    found = {"title": title, "columns": columns, "sort": [["@timestamp", order]], "kibanaSavedObjectMeta": source(query)}
    put("search", name, found, of(view))


def panel(name, title, query, kind, aggregations, parameters):
    numbered = [{"id": str(n), "enabled": True, **each} for n, each in enumerate(aggregations, 1)]
    state = {"title": title, "type": kind, "aggs": numbered, "params": parameters}
    shown = {"title": title, "visState": text(state), "uiStateJSON": "{}", "kibanaSavedObjectMeta": source(query)}
    put("visualization", name, shown, of(TRACES))


def metric(kind, field=None, label=None, **more):
    parameters = {key: value for key, value in {"field": field, "customLabel": label, **more}.items() if value is not None}
    return {"type": kind, "schema": "metric", "params": parameters}


def by(schema, field, size=10):
    return {"type": "terms", "schema": schema, "params": {"field": field, "orderBy": "1", "order": "desc", "size": size}}


def over_time():
    return {"type": "date_histogram", "schema": "segment", "params": {"field": "@timestamp", "interval": "auto", "min_doc_count": 1}}


def bars(label):
    labels = {"show": True, "truncate": 100}
    across = {"id": "CategoryAxis-1", "type": "category", "position": "bottom", "show": True, "scale": {"type": "linear"}}
    up = {"id": "ValueAxis-1", "name": "LeftAxis-1", "type": "value", "position": "left", "show": True}
    series = {"show": True, "type": "histogram", "mode": "stacked", "data": {"label": label, "id": "1"}, "valueAxis": "ValueAxis-1"}
    return {
        "type": "histogram",
        "addLegend": True,
        "addTooltip": True,
        "legendPosition": "right",
        "categoryAxes": [{**across, "labels": labels, "title": {}}],
        "valueAxes": [{**up, "scale": {"type": "linear", "mode": "normal"}, "labels": labels, "title": {"text": label}}],
        "seriesParams": [series],
    }


TABLE = {"perPage": 10, "showPartialRows": False, "showMetricsAtAllLevels": False, "showTotal": False, "totalFunc": "sum"}


def dashboard(name, title, description, panels, controls=()):
    placed, references = [], []
    for index, (kind, target, x, y, w, h) in enumerate(panels, 1):
        place = {"x": x, "y": y, "w": w, "h": h, "i": str(index)}
        reference = f"panel_{index}"
        placed.append(
            {"type": kind, "panelIndex": str(index), "gridData": place, "embeddableConfig": {}, "panelRefName": reference}
        )
        references.append({"name": f"{index}:{reference}", "type": kind, "id": target})
    inputs = {}
    for order, (field, label) in enumerate(controls):
        control = f"control-{order}"
        chosen = {"id": control, "fieldName": field, "title": label, "enhancements": {}}
        inputs[control] = {"order": order, "type": "optionsListControl", "width": "medium", "grow": True, "explicitInput": chosen}
        references.append({"name": f"controlGroup_{control}:optionsListDataView", "type": "index-pattern", "id": ALL})
    shown = {
        "title": title,
        "description": description,
        "panelsJSON": text(placed),
        "optionsJSON": text({"useMargins": True, "syncColors": True, "hidePanelTitles": False}),
        "timeRestore": False,
        "kibanaSavedObjectMeta": {"searchSourceJSON": text({"query": {"language": "kuery", "query": ""}, "filter": []})},
    }
    if inputs:
        shown["controlGroupInput"] = {"chainingSystem": "HIERARCHICAL", "controlStyle": "oneLine", "panelsJSON": text(inputs)}
    put("dashboard", name, shown, references)


data_view(TRACES, "millpond: spans", "traces-millpond.otel-*")
data_view(LOGS, "millpond: lines", "logs-millpond.otel-*")
data_view(ALL, "millpond: spans and lines", "traces-millpond.otel-*,logs-millpond.otel-*")

WHO = ["trace_id", "attributes.task_id", "attributes.kind", "attributes.attempt"]
search("millpond-spans", "millpond: spans", TRACES, "", ["name", "duration", "status.code", *WHO], "desc")
search("millpond-lines", "millpond: lines", LOGS, "", ["severity_text", "body.text", *WHO, "attributes.child"], "desc")
TOLD = ["duration", "status.message", "attributes.error.type", "resource.attributes.service.instance.id"]
search("millpond-failures", "millpond: failed attempts", TRACES, FAILED, [*WHO, *TOLD], "desc")
search("millpond-warnings", "millpond: warnings and errors", LOGS, "severity_number >= 13", ["body.text", *WHO], "desc")
search(
    "millpond-story-lines",
    "millpond: one task, spans and lines in order",
    ALL,
    "",
    ["name", "severity_text", "body.text", "attributes.exception.message", "attributes.attempt", "duration", "status.code", "trace_id"],
    "asc",
)

panel(
    "millpond-attempts",
    "Attempts over time",
    ATTEMPTS,
    "histogram",
    [metric("count"), over_time(), by("group", "status.code", 3)],
    bars("attempts"),
)
panel(
    "millpond-failures-by-kind",
    "Failures by kind",
    FAILED,
    "histogram",
    [metric("count"), by("segment", "attributes.kind"), by("group", "attributes.error.type", 8)],
    bars("failed attempts"),
)
panel(
    "millpond-slowest-kinds",
    "Slowest kinds",
    ATTEMPTS,
    "table",
    [
        metric("max", "duration", "longest"),
        metric("avg", "duration", "mean"),
        metric("percentiles", "duration", percents=[50, 95]),
        metric("count", label="attempts"),
        by("bucket", "attributes.kind", 20),
    ],
    TABLE,
)
panel(
    "millpond-longest-waits",
    "Longest waits",
    'attributes.messaging.operation.name: "wait"',
    "table",
    [metric("max", "duration", "longest"), metric("avg", "duration", "mean"), by("bucket", "attributes.messaging.destination.name")],
    TABLE,
)
panel(
    "millpond-dead-letters",
    "Dead letters stored",
    'name: "store DEAD"',
    "histogram",
    [metric("sum", "attributes.messaging.batch.message_count", "dead letters"), over_time()],
    bars("dead letters"),
)

dashboard(
    "millpond",
    "millpond",
    "A click on a trace id leads to the story of its task.",
    [
        ("visualization", "millpond-attempts", 0, 0, 32, 12),
        ("visualization", "millpond-dead-letters", 32, 0, 16, 12),
        ("visualization", "millpond-failures-by-kind", 0, 12, 16, 14),
        ("visualization", "millpond-slowest-kinds", 16, 12, 16, 14),
        ("visualization", "millpond-longest-waits", 32, 12, 16, 14),
        ("search", "millpond-failures", 0, 26, 48, 14),
        ("search", "millpond-warnings", 0, 40, 48, 14),
    ],
    [("attributes.queue", "Queue"), ("attributes.kind", "Kind"), ("attributes.job", "Job")],
)
dashboard(
    "millpond-story",
    "millpond: one task",
    'Search for trace_id: "…" or attributes.task_id: "…".',
    [("search", "millpond-story-lines", 0, 0, 48, 30), ("search", "millpond-spans", 0, 30, 48, 14), ("search", "millpond-lines", 0, 44, 48, 14)],
    [("attributes.task_id", "Task"), ("trace_id", "Trace"), ("attributes.attempt", "Attempt")],
)
