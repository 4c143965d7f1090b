#!/usr/bin/env bash
# What takes too long for .ci/run, one after the other; run by hand, before what it tries is said to work. A part that this
# machine has not the means for is named, and not passed over in silence.
#
#   tests/long.sh [PART…]     parts: publisher release store outages cluster panels otelcol elk kubernetes clients; default: all of them
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh
parts=("$@")
((${#parts[@]})) || parts=(publisher release store outages cluster panels otelcol elk kubernetes clients)

# The panels of Grafana, by a real Prometheus.
panels() {
    cargo build --quiet --locked --workspace
    python3 tests/prometheus/panels.py target/debug/millpond target/panels
}
# A program that only publishes, compiled from nothing: its crates, its seconds, no warning.
publisher() { tests/publisher.sh; }
# The images as they are released, instead of those that CI builds fast.
release() {
    tests/containers/engine.sh || fail "release: no Docker engine can be had"
    MILLPOND_BUILD_PROFILE=release tests/compose.sh
}
# Lists of a store with a million tasks: a measurement, which prints its figures.
store() { cargo test --release --locked -p millpond-collector speed -- --ignored --nocapture; }
# The end of a task is told although the server was away for long: to the official clients of the examples, and over HTTP.
outages() {
    command -v nats >/dev/null || fail "outages: there is no \`nats\`; go install github.com/nats-io/natscli/nats@v0.5.0 makes it"
    MILLPOND_TEST_OUTAGES=1,9,40 cargo test --workspace --test it --locked -- over_an_outage --nocapture --include-ignored
}
# Three nodes with three replicas: all faults, and the way back of a TASKS that stands still.
cluster() { CI=1 cargo test --workspace --test it --locked -- cluster:: --nocapture --include-ignored --test-threads 1; }
# Traces by way of a real OpenTelemetry Collector, built once: what it hands on is the same tree, links and metrics.
otelcol() {
    local dir=${ELK_DIR:-/var/tmp/millpond-elk}
    tests/elk/otelcol.sh "$dir"
    cargo build --quiet --locked --workspace --examples
    CI=1 MILLPOND_TEST_OTELCOL=$dir/otelcol/otelcol cargo test --workspace --test it --locked -- traces::
}
# Traces and logs end to end: a real Collector and a real Elasticsearch, built once.
elk() { tests/elk.sh; }
# The chart in a real cluster, which kubectl reaches.
kubernetes() {
    kubectl version >/dev/null 2>&1 || fail "kubernetes: kubectl reaches no cluster"
    tests/kubernetes.sh
}
# The official libraries that CI leaves out: Java, and the `nats` program.
clients() { CI=1 MILLPOND_TEST_CLIENTS="java shell" cargo test --workspace --test it --locked -- clients::; }

for part in "${parts[@]}"; do
    "$part"
    step "$part"
done
