"""deploy/elasticsearch/setup.sh against a server that writes down what it is asked: every body is JSON, every request is the
superuser's, roles and users fit together, no password is in a list of processes. It is no Elasticsearch and no Kibana."""

import base64
import http.server
import json
import os
import pathlib
import subprocess
import tempfile
import threading

ROOT = pathlib.Path(__file__).parent.parent
SECRETS = {name: f"m-{name}" for name in ("elastic_password", "kibana_password", "writer_password", "reader_password")}


class Writes(http.server.BaseHTTPRequestHandler):
    seen = []

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.seen.append((self.command, self.path, self.headers, body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"success":true}')

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Writes)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
with tempfile.TemporaryDirectory() as folder:
    for name, secret in SECRETS.items():
        pathlib.Path(folder, name).write_text(f"{secret}\n")
    objects = ROOT / "deploy/kibana/objects.ndjson"
    environment = {"ELASTICSEARCH_URL": url, "KIBANA_URL": url, "SECRETS": folder, "OBJECTS": str(objects), "CA_FILE": "/dev/null"}
    steps = ["templates", "users", "objects", "api-key", "reports"]
    traced = ["bash", "-x", ROOT / "deploy/elasticsearch/setup.sh", *steps]
    done = subprocess.run(traced, env={**os.environ, **environment}, capture_output=True, text=True)
assert done.returncode == 0, done.stderr
for _, path, headers, _ in Writes.seen:
    name, password = base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode().split(":")
    assert (name, password) == ("elastic", SECRETS["elastic_password"]), path
calls = [line for line in done.stderr.splitlines() if line.lstrip("+").startswith(" curl ")]
assert calls and not any(secret in call for call in calls for secret in SECRETS.values()), "a password is an argument of curl"
bodies = {path: json.loads(body) for _, path, _, body in Writes.seen if path.startswith("/_") and body}
templates = {path for path in bodies if path.startswith("/_index_template/")}
assert templates == {f"/_index_template/{signal}-millpond.otel" for signal in ("logs", "traces")}, templates
roles = {path.rsplit("/", 1)[1]: body for path, body in bodies.items() if path.startswith("/_security/role/")}
patterns = sorted(json.loads(file.read_text())["index_patterns"][0] for file in (ROOT / "deploy/elasticsearch/templates").iterdir())
for name, role in roles.items():
    assert sorted(role["indices"][0]["names"]) == patterns, name
for user, secret in (("millpond_writer", "writer_password"), ("millpond", "reader_password")):
    body = bodies[f"/_security/user/{user}"]
    assert body["password"] == SECRETS[secret] and set(body["roles"]) <= set(roles), user
assert "millpond_writer" in (ROOT / "deploy/logstash/pipeline/otlp.conf").read_text()
assert bodies["/_security/user/kibana_system/_password"] == {"password": SECRETS["kibana_password"]}
assert bodies["/_security/api_key"]["role_descriptors"]["reader"]["indices"][0]["privileges"] == ["read", "view_index_metadata"]
imported = [(headers, body) for _, path, headers, body in Writes.seen if path == "/api/saved_objects/_import?overwrite=true"]
assert len(imported) == 1 and imported[0][0]["kbn-xsrf"] == "true" and objects.read_text() in imported[0][1]
print(f"setup.sh: {len(Writes.seen)} requests are as they should be")
