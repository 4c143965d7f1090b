#!/usr/bin/env bash
# Traces and logs, end to end: millpond -> the real OpenTelemetry Collector with deploy/otel-collector -> the filter of
# deploy/logstash -> a real Elasticsearch with the index templates of deploy/elasticsearch. A retried, a dead, a chained and a
# batched task: every span and every line of each, found by its trace id, counts exact; then the same after an outage.
#
# NOT run here: Logstash and its plugins (tests/elk/logstash.rb stands in for them, with the real filter), security and TLS of
# Elasticsearch, Kibana, and the Collector's Elasticsearch exporter (deploy/otel-collector/direct.yaml).
#
#   tests/elk.sh [MILLPOND]     MILLPOND: the program; default: cargo builds it
#
# Needs JDK 17, Maven, Go, Ruby (or JRuby as RUBY), python3, curl, unzip, libzstd, Prometheus where metrics are to be tried, about 2 GB in $ELK_DIR (default:
# /var/tmp/millpond-elk), where what it builds is kept, and a network for the first time. Everything listens on 127.0.0.1 only.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh

ELK_DIR=${ELK_DIR:-/var/tmp/millpond-elk}
RUBY=${RUBY:-ruby}
here=$PWD
engine=$ELK_DIR/search-engine otelcol=$ELK_DIR/otelcol/otelcol
work=$(mktemp -d)
declare -A started

# Starts a command, its output in a file of its name; its process id is in $pid.
start() { # start NAME COMMAND…
    "${@:2}" >>"$work/$1.log" 2>&1 &
    pid=$!
    started[$pid]=1
}
# Ends a process that was started here, and waits for it.
stop() {
    unset "started[$1]"
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
cleanup() {
    local code=$?
    for pid in "${!started[@]}"; do stop "$pid"; done
    if [ "$code" != 0 ]; then tail -n 5 "$work"/*.log >&2; fi
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT
for program in java javac mvn go "$RUBY" python3 curl unzip; do
    command -v "$program" >/dev/null || fail "$program is not here"
done

# --- what is built once ---
libraries() {
    local module=$engine/home/modules/transport-netty4
    mkdir -p "$engine"/{home/config,home/plugins,home/logs,classes,native} "$module"
    mvn --quiet --batch-mode --file tests/elk/search-engine/pom.xml dependency:copy-dependencies \
        -DoutputDirectory="$engine/libraries"
    # Its HTTP server is a module in a folder of its own, here on the class path of that folder.
    unzip -q -o -j "$engine"/libraries/transport-netty4-*.jar 'META-INF/es-plugins/transport-netty4/*' -d "$module"
    sed -i '/^modulename=/d' "$module/plugin-descriptor.properties"
    mv "$engine"/libraries/{transport-netty4,netty}-*.jar "$module/"
    cp tests/elk/search-engine/log4j2.properties "$engine/home/config/"
    touch "$engine/home/config/elasticsearch.yml"
    ln -sf "$(ldconfig -p | awk '/libzstd.so.1/ { print $NF; exit }')" "$engine/native/libzstd.so"
    javac -cp "$engine/libraries/*" -d "$engine/classes" tests/elk/search-engine/Main.java
}
mkdir -p "$ELK_DIR"
[ -e "$engine/classes/Main.class" ] || libraries >"$work/libraries.log" 2>&1
tests/elk/otelcol.sh "$ELK_DIR" >"$work/collector-build.log" 2>&1
millpond=${1:-}
if [ -z "$millpond" ]; then
    cargo build --quiet --locked -p millpond-cli
    millpond=target/debug/millpond
fi
millpond=$(realpath "$millpond")
step "built, or found"

# --- the pipeline ---
read -r search_port otlp_port health_port metrics_port logstash_port worker_port prometheus_port < <(free_ports 7)
export ELASTICSEARCH_URL=http://127.0.0.1:$search_port
export OTELCOL_LISTEN=127.0.0.1:$otlp_port OTELCOL_HEALTH=127.0.0.1:$health_port OTELCOL_METRICS_HOST=127.0.0.1
export OTELCOL_METRICS_PORT=$metrics_port OTELCOL_STORAGE=$work/queue LOGSTASH_URL=http://127.0.0.1:$logstash_port
mkdir "$work/queue"
start elasticsearch tests/elk/search-engine/start.sh "$engine" "$work/home" "$search_port"
SECRETS=$work deploy/elasticsearch/setup.sh templates
step "Elasticsearch is up, with the templates of deploy/elasticsearch"
configs=(--config deploy/otel-collector/config.yaml --config deploy/otel-collector/logstash.yaml)
"$otelcol" validate "${configs[@]}"
start_logstash() {
    start logstash "$RUBY" tests/elk/logstash.rb "$logstash_port" "$ELASTICSEARCH_URL"
    logstash=$pid
}
start_otelcol() {
    start otelcol "$otelcol" "${configs[@]}"
    otelcol_pid=$pid
    until_true "the Collector" 120 curl -sf "http://127.0.0.1:$health_port"
}
start_logstash
start_otelcol
step "the Collector is up, with deploy/otel-collector"

# --- tasks ---
mkdir "$work/handlers"
printf '[story]\ncommand = ["python3", "%s"]\nslots = 2\n' "$here/tests/handlers/story.py" >"$work/handlers/handlers.toml"
export MILLPOND_STATE=$work/state MILLPOND_WORKER_RETRY_DELAY=200ms
export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$otlp_port OTEL_METRICS_EXPORTER=none
start millpond "$millpond" up --ports auto --workers 0
up=$pid
until_true "millpond up" 120 test -s "$work/state/env"
until_true "the collector" 120 "$millpond" job ls
start worker "$millpond" worker run --name w1 --built-in square --listen "127.0.0.1:$worker_port" --handlers "$work/handlers/handlers.toml"
worker=$pid
until_true "the worker" 120 curl -sf "http://127.0.0.1:$worker_port/readyz"
run() { "$millpond" "$@" >>"$work/commands.log" 2>&1; }
trace() { # of a task
    "$millpond" task show "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["trace"])'
}
run submit story '{"until": 3}' --id retried --wait
run submit story '{"fatal": true}' --id dead --wait || true
run submit story '{}' --id chained --continuation story --wait
printf '{}\n{}\n{}\n' >"$work/input"
run map story - --batch 3 --job batched <"$work/input"
until_true "the step of the chain" 120 "$millpond" why chained/default.story/then
check() { python3 tests/elk/check.py "$ELASTICSEARCH_URL" "$@"; }
# Publishes, waits, attempts; exceptions; lines of children.
stories() {
    check "$retried" retried 1 3 3 2 6
    check "$dead" dead 1 1 1 1 2
    check "$chained" chained 1 2 2 0 4
    check "$batched" batched.1/0+3 1 1 1 0 6
}
retried=$(trace retried) dead=$(trace dead) chained=$(trace chained) batched=$(trace batched.1/0+3)
stories
python3 tests/elk/panels.py "$ELASTICSEARCH_URL"
# As docs/observability.md has it: 7 spans, 2 exceptions, 6 lines of the child, 2 of the worker; and the kind that fails.
found=$(curl -sf "$ELASTICSEARCH_URL/traces-*,logs-*/_search?size=1000&sort=@timestamp&q=trace_id:$retried" |
    python3 -c 'import json, sys; print(len(json.load(sys.stdin)["hits"]["hits"]))')
[ "$found" = 17 ] || fail "the story of the retried task by curl: expected 17, got $found"
curl -sf -H 'Content-Type: application/json' "$ELASTICSEARCH_URL/traces-*/_search?size=0&q=status.code:Error" -d '
  {"aggs": {"kind": {"terms": {"field": "attributes.kind"}, "aggs": {"ns": {"max": {"field": "duration"}}}}}}' |
    grep -q '"key":"story","doc_count":3' || fail "the kinds that fail by curl"
step "retried, dead, chained, batched: every span and line, found by trace id"

# --- metrics ---
if command -v prometheus >/dev/null; then
    address() { sed -n "s#^$1=['\"]*http://\([^/'\"]*\).*#\1#p" "$work/state/env"; }
    python3 tests/elk/metrics.py config "127.0.0.1:$worker_port" "$(address MILLPOND_PRODUCER_URL)" \
        "$(address MILLPOND_COLLECTOR_URL)" "127.0.0.1:$metrics_port" >"$work/prometheus.yml"
    start prometheus prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/metrics.db" \
        --web.listen-address="127.0.0.1:$prometheus_port"
    prometheus=$pid
    until_true "Prometheus" 120 curl -sf "http://127.0.0.1:$prometheus_port/-/ready"
    # Histograms and rates want tasks between two looks; and one over HTTP, for the producer.
    token=$(sed -n "s/^MILLPOND_TOKEN=['\"]*\([^'\"]*\).*/\1/p" "$work/state/env")
    for _ in 1 2 3; do
        sleep 1.5
        run submit story '{}' --wait
        run submit story '{"fatal": true}' --wait || true
        curl -sf -H "Authorization: Bearer $token" -d 12 "http://$(address MILLPOND_PRODUCER_URL)/v1/tasks/default/square" >/dev/null
    done
    python3 tests/elk/metrics.py ask "http://127.0.0.1:$prometheus_port"
    stop "$prometheus"
    step "Prometheus has figures for every panel of Grafana"
else
    step "NOT run: there is no prometheus here"
fi

# --- an outage: nobody takes what the Collector has, and it is started again meanwhile ---
stop "$logstash"
run submit story '{"until": 2}' --id outage --wait
outage=$(trace outage)
# What prometheus.yml scrapes: how full the queue of the exporter is.
waits_in_queue() {
    curl -sf "http://127.0.0.1:$metrics_port/metrics" >"$work/metrics" && grep -q '^otelcol_exporter_queue_capacity{' "$work/metrics" &&
        grep '^otelcol_exporter_queue_size{.*traces' "$work/metrics" | grep -qv ' 0$'
}
until_true "something in the queue of the Collector" 120 waits_in_queue
sleep 2
stop "$otelcol_pid"
check "$outage" outage 0 0 0 0 0
start_otelcol
start_logstash
check "$outage" outage 1 2 2 1 4
step "a task of the outage is there, from the queue on disk"

# --- nothing more comes of them when all is over, and no document was refused ---
stop "$worker"
stop "$up"
stop "$otelcol_pid"
stories
if grep -q 'refused\|not OTLP' "$work/logstash.log"; then fail "Elasticsearch has refused documents"; fi
step "elk.sh: all of it is as it should be"
