"""Configuration in deploy/ against the code and against itself: every field, metric, label and object that is named is there.

    deploy_check.py        prints what it has looked at; tests/deploy.sh runs it
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
# Of OTLP and of the OpenTelemetry Collector, not of this code.
METRICS_OF_OTHERS = {"up", "otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"}
FIELDS_OF_ELASTICSEARCH = {"@timestamp", "trace.id", "span.id", "parent.id", "message"}
NUMBERS = {"attempt", "process.pid", "messaging.batch.message_count", "failed"}


def read(path):
    return (ROOT / path).read_text()


def sources():
    for folder in ("crates", "services"):
        yield from ((path, path.read_text()) for path in sorted((ROOT / folder).rglob("*.rs")))


def attributes_of_code():
    """Names of the attributes of spans and lines, and of resources."""
    telemetry = "".join(text for path, text in sources() if "telemetry" in path.parts)
    names = set(re.findall(r'FIELD_\w+: &str = "([^"]+)"', telemetry)) - {"trace_id", "span_id"}
    for _, text in sources():
        names |= set(re.findall(r'(?:KeyValue::new|\battribute|\babout)\(\s*"([^"]+)"', text))
        # Of the lines that children write: `info!(name: CHILD_LINE, worker, child, kind, "{message}")`.
        for fields in re.findall(r'info!\(name: CHILD_LINE, ([a-z_, ]+), "\{message\}"\)', text):
            names |= set(fields.split(", "))
    names |= {name for name in re.findall(r'"([a-z0-9._]+)"\)', telemetry) if name.startswith("k8s.")}
    assert len(names) > 20, names
    return names


def leaves(properties, prefix=""):
    for name, field in properties.items():
        if "properties" in field:
            yield from leaves(field["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name, field


def templates():
    """Fields of the index templates by signal; each is one that the code or the filter writes, and has its type."""
    code = attributes_of_code()
    script = read("deploy/logstash/otlp.rb")
    written, fields = set(re.findall(r'"([\w.@]+)"', script)), {}
    for signal in ("traces", "logs"):
        template = json.loads(read(f"deploy/elasticsearch/templates/{signal}-millpond.otel.json"))
        assert template["index_patterns"] == [f"{signal}-millpond.otel-*"] and "data_retention" in template["template"]["lifecycle"]
        fields[signal] = dict(leaves(template["template"]["mappings"]["properties"]))
        for name, field in fields[signal].items():
            short = re.sub(r"^(resource\.)?attributes\.", "", name)
            if short != name:
                assert short in code | written, f"{signal}: {name} is in no constant of the code"
                assert (field["type"] == "long") == (short in NUMBERS), f"{signal}: {name} has a wrong type"
            elif field["type"] == "alias":
                assert field["path"] in fields[signal], f"{signal}: {name} is an alias of no field"
            elif name not in FIELDS_OF_ELASTICSEARCH:
                assert all(part in written for part in name.split(".")), f"{signal}: {name} is not what otlp.rb writes"
    both = {re.sub(r"^(resource\.)?attributes\.", "", name) for names in fields.values() for name in names}
    assert code <= both, f"not mapped: {sorted(code - both)}"
    print(f"index templates: {len(fields['traces'])} and {len(fields['logs'])} fields, {len(code)} names of the code")
    return fields


def kibana(fields):
    written = subprocess.run([sys.executable, ROOT / "deploy/kibana/objects.py"], capture_output=True, text=True, check=True).stdout
    assert written == read("deploy/kibana/objects.ndjson"), "write deploy/kibana/objects.ndjson anew"
    objects = [json.loads(line) for line in written.splitlines()]
    names = [(each["type"], each["id"]) for each in objects]
    assert len(set(names)) == len(names), "ids are unique"
    named = set()
    for index, each in enumerate(objects):
        shown = each["attributes"]
        for reference in each["references"]:
            assert (reference["type"], reference["id"]) in names[:index], f"{each['id']}: {reference} comes later, or never"
        source = json.loads(shown.get("kibanaSavedObjectMeta", {}).get("searchSourceJSON", "{}"))
        if each["type"] in ("search", "visualization"):
            assert source["indexRefName"] == each["references"][0]["name"], each["id"]
        used = set(re.findall(r"([\w.]+)(?::| >=)", source.get("query", {}).get("query", ""))) | set(shown.get("columns", []))
        state = json.loads(shown.get("visState", "{}"))
        used |= {aggregation["params"]["field"] for aggregation in state.get("aggs", []) if "field" in aggregation["params"]}
        used |= set(json.loads(shown.get("fieldFormatMap", "{}")))
        if each["type"] == "dashboard":
            panels = json.loads(shown["panelsJSON"])
            wanted = {f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels}
            controls = json.loads(shown["controlGroupInput"]["panelsJSON"])
            wanted |= {f"controlGroup_{control}:optionsListDataView" for control in controls}
            assert wanted == {reference["name"] for reference in each["references"]}, each["id"]
            used |= {control["explicitInput"]["fieldName"] for control in controls.values()}
        views = [reference["id"] for reference in each["references"] if reference["type"] == "index-pattern"] or [each["id"]]
        for view in set(views) if used else []:
            known = {"millpond-traces": ["traces"], "millpond-logs": ["logs"], "millpond-all": ["traces", "logs"]}[view]
            missing = used - {field for signal in known for field in fields[signal]}
            assert not missing, f"{each['id']}: {missing} is in no index template of {view}"
        named |= used
    print(f"Kibana: {len(objects)} objects, {len(named)} fields")


def metrics_of_code():
    names = set()
    for _, text in sources():
        names |= set(re.findall(r'(?:gauge!|counter!|histogram!|TracedHistogram::new|took)\(\s*"(millpond_\w+)"', text))
    documented = set(re.findall(r"`(millpond_\w+)`", read("docs/observability.md")))
    assert len(names) > 30 and names <= documented, names - documented
    return names


def check_metrics(what, expressions, names):
    seen = set()
    for expression in expressions:
        found = set(re.findall(r"\b(?:millpond|otelcol)_\w+|\bup\b", expression))
        assert found, f"{what}: no metric in {expression}"
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in names else name for name in found}
        assert plain <= names | METRICS_OF_OTHERS, f"{what}: {plain - names} is no metric"
        seen |= plain
    return seen


def prometheus(names):
    rules = read("deploy/prometheus/rules/alerts.yml")
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.M)
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    seen = check_metrics("alerts", expressions, names)
    named = set(re.findall(r"millpond_\w+", rules))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= names, named - names
    tests = read("tests/prometheus/alerts_test.yml")
    untested = {alert for alert in alerts if not re.search(rf"alertname: {alert}\s+exp_alerts:\n", tests)}
    assert not untested, f"alerts without an example: {untested}"
    problems = read("crates/api/src/overview.rs")
    for kind in re.search(r'millpond_problems\{kind=~"([^"]+)"', rules)[1].split("|"):
        assert f'"{kind}"' in problems, f"{kind} is no problem"
    print(f"Prometheus: {len(alerts)} alerts, {len(seen)} metrics")


def grafana(names):
    board = json.loads(read("deploy/grafana/dashboards/millpond.json"))
    source = read("deploy/grafana/provisioning/datasources/prometheus.yml")
    uid = re.search(r"uid: (\w+)", source)[1]
    panels, expressions = board["panels"], []
    assert len({panel["id"] for panel in panels}) == len(panels), "ids are unique"
    taken = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            assert cell not in taken, f"{panel['title']} is over {taken[cell]}"
            taken[cell] = panel["title"]
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == uid == panel["datasource"]["uid"], panel["title"]
            expressions.append(target["expr"])
    for variable in board["templating"]["list"]:
        expressions.append(re.match(r"label_values\((\w+), \w+\)$", variable["query"]["query"])[1])
    variables = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    for name in re.findall(r"\$(\w+)", " ".join(expressions)):
        assert name in variables, f"${name} is no variable"
    seen = check_metrics("dashboard", expressions, names)
    # Every expression is one: as rules, which promtool reads.
    plain = [expression.replace("$__rate_interval", "1m").replace("$queue", ".*").replace("$kind", ".*") for expression in expressions]
    rules = [{"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(plain)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    print(f"Grafana: {len(panels)} panels, {len(expressions)} expressions, {len(seen)} metrics")


def secrets():
    """Each file below /run/millpond that compose and deploy/ name is one that `millpond secrets` makes for that service."""
    made = set(re.findall(r'\("([\w-]+)", "(\w+)"\),', read("cli/src/credentials.rs")))
    compose, service, seen = read("docker-compose.yml"), None, set()
    for line in compose.split("# --- profiles elk and metrics")[1].splitlines():
        service = (re.match(r"  ([\w-]+):", line) or [None, service])[1]
        seen |= {(service, name) for name in re.findall(r"/run/millpond/(\w+)", line)}
    script = read("deploy/elasticsearch/setup.sh")
    named = set(re.findall(r"\$secrets/(\w+)", script)) | set(re.findall(r"^    user \w+ (\w+)", script, re.M))
    seen |= {("elk-setup", name) for name in named}
    seen |= {("otel-collector", name) for name in re.findall(r"/run/millpond/(\w+)", read("deploy/otel-collector/direct.yaml"))}
    assert seen and seen <= made, f"not made by `millpond secrets`: {sorted(seen - made)}"
    print(f"secrets: {len(seen)} uses")


def containers():
    """As tests/compose.sh has it of those that run: rights, limits, exact images, nothing open to other machines."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        return print("docker compose is not here: containers were not looked at")
    asked = ["docker", "compose", "--profile", "elk", "--profile", "metrics", "config", "--format", "json"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    services = json.loads(said.stdout)["services"]
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+(\.\d+|-alpine)(@sha256:[0-9a-f]{64})?$", service["image"]), f"{name}: {service['image']} is no exact version"
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].startswith("65532:") and service["mem_limit"] and service["pids_limit"], name
        assert service.get("read_only") or "docker.elastic.co" in service["image"], f"{name}: its root can be written"
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), f"{name} is open"
        for mount in service["volumes"]:
            source = pathlib.Path(mount["source"])
            assert mount["type"] == "volume" or source.exists() and mount["read_only"], f"{name}: {source}"
    for name in ("producer", "worker", "collector"):
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" in services[name]["environment"], name
    print(f"containers: {len(services)}")


metrics = metrics_of_code()
kibana(templates())
prometheus(metrics)
grafana(metrics)
secrets()
containers()
