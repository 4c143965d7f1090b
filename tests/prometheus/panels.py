"""Each panel of the Grafana dashboard with figures of a real cluster: a real Prometheus scrapes a producer, a worker and a collector
while tasks run, in children too, fail and die, and while the worker is stopped for longer than its leases last; it answers the query of
each panel, and a picture of that is drawn. Grafana itself is not run.

    panels.py MILLPOND FOLDER      FOLDER: where the pictures go
"""

import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).parent.parent.parent
RUNS_FOR_S = 45
# Nothing of it happens here: there is no such figure, or it is 0.
QUIET = ("millpond_store_errors_total", "millpond_problems", "millpond_acks_unanswered")
# When the worker is stopped, and for how long: a lease lasts 3 s. A counter that begins has no rate before its second time.
STOPPED_AT_S = (12, 24)
STOPPED_FOR_S = 5
WIDTH, HEIGHT = 480, 160
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def until(what, condition, within_s=60):
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"waited too long for {what}")


def environment(state):
    lines = (state / "env").read_text().splitlines()
    pairs = (re.match(r"(\w+)=['\"]?([^'\"]*)", line) for line in lines)
    return dict(pair.groups() for pair in pairs if pair)


def configuration(addresses):
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text().split("  # Of the profile elk.")[0]
    given = iter(addresses)
    text = re.sub(r"dns_sd_configs: .*", lambda _: f'static_configs: [{{ targets: ["{next(given)}"] }}]', text)
    return text.replace("interval: 10s", "interval: 1s").replace("rules/alerts.yml", f"{ROOT}/deploy/prometheus/rules/alerts.yml")


class TakesTelemetry(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def draw(panel, series, begin, end):
    """A line for each series."""
    points = [(float(t), float(v)) for one in series for t, v in one["values"] if v not in ("NaN", "+Inf", "-Inf")]
    top = max([v for _, v in points] + [1e-9])
    x = lambda t: 10 + (t - begin) / (end - begin) * (WIDTH - 20)
    y = lambda v: HEIGHT - 30 - v / top * (HEIGHT - 60)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">']
    parts.append(f'<text x="10" y="16">{panel["title"]}: up to {top:.4g}</text>')
    for number, one in enumerate(series):
        line = " ".join(f"{x(float(t)):.1f},{y(float(v)):.1f}" for t, v in one["values"] if v not in ("NaN", "+Inf", "-Inf"))
        parts.append(f'<polyline fill="none" stroke="{COLOURS[number % len(COLOURS)]}" points="{line}"/>')
    names = ", ".join(sorted({value for one in series for name, value in one["metric"].items() if name != "__name__"}))
    return "\n".join(parts + [f'<text x="10" y="{HEIGHT - 8}">{names[:80]}</text>', "</svg>", ""])


def main():
    millpond, folder = (pathlib.Path(given).resolve() for given in sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        state, started = pathlib.Path(work) / "state", []
        env = {**os.environ, "MILLPOND_STATE": str(state), "MILLPOND_WORKER_RETRY_DELAY": "200ms"}
        takes = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TakesTelemetry)
        threading.Thread(target=takes.serve_forever, daemon=True).start()
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{takes.server_port}"
        log = open(pathlib.Path(work) / "log", "w")

        def start(*command):
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            return started[-1]

        try:
            run(millpond, folder, work, state, env, start)
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait(30)


def run(millpond, folder, work, state, env, start):
    start(millpond, "up", "--ports", "auto", "--workers", "0")
    until("millpond up", lambda: (state / "env").exists() and "MILLPOND_TOKEN" in environment(state))
    of = environment(state)
    worker, prometheus = (f"127.0.0.1:{free_port()}" for _ in range(2))
    handlers = pathlib.Path(work) / "handlers.toml"
    handlers.write_text(f'[story]\ncommand = ["python3", "{ROOT}/tests/handlers/story.py"]\n')
    process = start(millpond, "worker", "run", "--name", "w1", "--built-in", "*", "--listen", worker, "--handlers", handlers)
    until("the worker", lambda: urllib.request.urlopen(f"http://{worker}/readyz"))
    of_url = lambda name: of[name].split("//")[1].rstrip("/")
    addresses = (worker, of_url("MILLPOND_PRODUCER_URL"), of_url("MILLPOND_COLLECTOR_URL"))
    (pathlib.Path(work) / "prometheus.yml").write_text(configuration(addresses))
    start("prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/tsdb", f"--web.listen-address={prometheus}")
    until("Prometheus", lambda: urllib.request.urlopen(f"http://{prometheus}/-/ready"))
    begin = time.time()
    tasks = (("square", "12"), ("sleep", "0.2"), ("story", '{"until":2}'), ("fail", '{"until":2}'), ("fail", '{"how":"fatal"}'))
    publish, is_stopped = f"http://{addresses[1]}/v1/tasks/default/", False

    def submit(kind, arguments):
        request = urllib.request.Request(publish + kind, arguments.encode(), {"Authorization": f"Bearer {of['MILLPOND_TOKEN']}"})
        urllib.request.urlopen(request).read()

    while time.time() - begin < RUNS_FOR_S:
        for kind, arguments in tasks:
            submit(kind, arguments)
        is_to_stop = any(at < time.time() - begin < at + STOPPED_FOR_S for at in STOPPED_AT_S)
        if is_to_stop != is_stopped:
            process.send_signal(signal.SIGSTOP if is_to_stop else signal.SIGCONT)
            is_stopped = is_to_stop
            # It crashes on what is no object.
            submit("story", '"crash"')
        time.sleep(0.1)
    end, board = time.time(), json.loads((ROOT / "deploy/grafana/dashboards/millpond.json").read_text())
    drawn, empty = 0, []
    for panel in board["panels"]:
        series = []
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "10s").replace("$queue", ".*").replace("$kind", ".*")
            asked = urllib.parse.urlencode({"query": query, "start": begin, "end": end, "step": 1})
            answer = get(f"http://{prometheus}/api/v1/query_range?{asked}")
            assert answer["status"] == "success", answer
            series += answer["data"]["result"]
            values = [float(value) for one in answer["data"]["result"] for _, value in one["values"]]
            # Dropped telemetry is counted from the start.
            has_figures = bool(values) if "dropped" in query else any(value > 0 for value in values)
            if not has_figures and not any(name in query for name in QUIET):
                empty.append(query)
        if "targets" in panel:
            name = re.sub(r"\W+", "-", panel["title"].lower())
            (folder / f"{panel['id']:02}-{name}.svg").write_text(draw(panel, series, begin, end))
            drawn += 1
    assert not empty, f"no figures: {empty}"
    groups = get(f"http://{prometheus}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert all(rule["health"] == "ok" for rule in rules), rules
    firing = sorted(rule["name"] for rule in rules if rule["state"] == "firing")
    assert "MillpondDeadLetters" in firing, firing
    print(f"{drawn} panels are drawn in {folder}; {len(rules)} alerts are evaluated, firing: {', '.join(firing)}")


main()
