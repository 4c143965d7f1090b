"""The configuration of Prometheus, for services at known addresses; and every expression of the Grafana dashboard and of the
alerts, asked of a Prometheus that scrapes them: each is answered, and each of the dashboard has figures.

    metrics.py config WORKER PRODUCER COLLECTOR OTELCOL > prometheus.yml
    metrics.py ask PROMETHEUS
"""

import json
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).parent.parent.parent
# Nothing of it happens in the test: no such counter is there yet.
QUIET = ("millpond_child_restarts_total", "millpond_store_errors_total", "millpond_redeliveries_total", "millpond_renewals_failed_total")
WAITS_FOR_S = 60


def config(addresses):
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    given = iter(addresses)
    text = re.sub(r"dns_sd_configs: .*", lambda _: f'static_configs: [{{ targets: ["{next(given)}"] }}]', text)
    text = text.replace("interval: 10s", "interval: 1s").replace("rules/alerts.yml", f"{ROOT}/deploy/prometheus/rules/alerts.yml")
    print(text)


def ask(url, expression):
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}") as answer:
        said = json.load(answer)
    assert said["status"] == "success", said
    return said["data"]["result"]


def main():
    what, *rest = sys.argv[1:]
    if what == "config":
        return config(rest)
    board = json.loads((ROOT / "deploy/grafana/dashboards/millpond.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    plain = [each.replace("$__rate_interval", "1m").replace("$queue", ".*").replace("$kind", ".*") for each in expressions]
    until = time.monotonic() + WAITS_FOR_S
    while True:
        empty = [each for each in plain if not ask(rest[0], each) and not any(name in each for name in QUIET)]
        if not empty or time.monotonic() > until:
            break
        time.sleep(0.5)
    assert not empty, f"no figures: {empty}"
    up = {each["metric"]["job"]: each["value"][1] for each in ask(rest[0], "up")}
    assert len(up) == 4 and set(up.values()) == {"1"}, up
    with urllib.request.urlopen(f"{rest[0]}/api/v1/rules") as answer:
        rules = json.load(answer)["data"]["groups"][0]["rules"]
    assert rules and all(rule["health"] == "ok" for rule in rules), rules
    print(f"Prometheus: {len(expressions)} expressions of the dashboard have figures, {len(rules)} alerts are evaluated")


main()
