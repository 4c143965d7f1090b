#!/usr/bin/env bash
# The chart on a real Kubernetes: installed, tested, scaled out and in by a real HorizontalPodAutoscaler under ten thousand tasks
# that compute, upgraded and rolled under load, its pods killed, a node drained, and removed again. Each start of a task is
# noted by its handler in a file that all workers share: what the store says is compared with it.
#
#   LOAD_IMAGE=COMMAND tests/kubernetes.sh [--keep]     --keep leaves the release as it is at the end
#
# Needs a cluster of one node on this machine in KUBECONFIG, with metrics and a default storage class; LOAD_IMAGE, which brings
# an image of the Docker engine there (`kind load docker-image`, say); kubectl, helm, docker, python3. Everything is made in a
# namespace of its own. What needs the node's processes (kill -9) looks for them in /proc. HOSTPATH_DIR is where the volumes are,
# when they are mere folders of this machine, of a provisioner that heeds no fsGroup: they are given to the pods' user.
#
# Traces and logs by the chart's own OpenTelemetry Collector into a real Elasticsearch are tried where tests/elk.sh has built
# both before, and ON_NODE (a command that runs another in the node's network) and NODE_ADDRESS are given; else it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh

keep=${1:-}
ns=millpond-test-$$
work=$(mktemp -d)
HELM=${HELM:-$(command -v helm || echo target/chart/python/bin/helm)}
TASKS=${TASKS:-10000}
MOST=6
SLOW=24
: "${LOAD_IMAGE:?a command that brings a Docker image into the cluster}"
background=()

k() { kubectl --namespace "$ns" "$@"; }
# Of symbolic links in a chart helm says each time that it follows them.
helm() { "$HELM" --namespace "$ns" "$@" 2> >(grep -v 'found symbolic link' >&2); }
cleanup() {
    local code=$?
    for group in "${background[@]}"; do kill -- "-$group" 2>/dev/null || true; done
    if [ "$code" != 0 ]; then
        k get pods,hpa -o wide >&2 || true
        k get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 >&2 || true
        for pod in $(k get pods -o name); do
            echo "--- $pod" >&2
            k logs --tail 8 "$pod" >&2 || true
        done
        tail -n 5 "$work"/*.log >&2 || true
    fi
    if [ "$keep" != --keep ]; then
        kubectl delete namespace "$ns" --wait=false >/dev/null 2>&1 || true
        rm -rf "$work"
    fi
    exit "$code"
}
trap cleanup EXIT

# --- what there is of tasks ---
millpond() { "$work/millpond" --state none "$@" 2>>"$work/millpond.log" </dev/null; }
# A job, of a task for each line of standard input; returns when they are stored.
submit_job() { # JOB
    cat >"$work/$1.ndjson"
    millpond map note "$work/$1.ndjson" --batch 1 --no-wait --job "$1" --attempts-max 3 >/dev/null
}
tasks() { python3 -c 'import random, sys
random.seed(sys.argv[1])
for _ in range(int(sys.argv[2])): print("{\"%s\": %.3f}" % (sys.argv[3], random.uniform(float(sys.argv[4]), float(sys.argv[5]))))' "$@"; } # SEED COUNT busy|idle FROM TO
# How many have ended; asked again while the collector is away.
ended() {
    local job=
    until job=$(millpond job show "$1" --json); do sleep 0.5; done
    python3 -c 'import json, sys; job = json.loads(sys.argv[1]); print(sum(job.get(end, 0) for end in ("done", "dead", "cancelled")))' "$job"
}
begun() { [ "$(ended "$1")" -gt 3 ]; }
# Of the tasks of a job: how many are stored, how many have ended well, and how many were started more than once.
counts() {
    k exec deploy/millpond-worker-long -- cat /runs/started >"$work/started"
    millpond task export --job "$1" | python3 -c '
import collections, json, sys
rows = [json.loads(line) for line in sys.stdin]
started = collections.Counter(line for line in open(sys.argv[2]).read().split() if line.startswith(sys.argv[1] + "."))
assert set(started) == {row["id"] for row in rows}, "not what was published has run"
assert len(rows) == len({row["id"] for row in rows}), "stored twice"
print(len(rows), sum(row["status"] == "done" for row in rows), sum(n - 1 for n in started.values()))' "$1" "$work/started"
}

# --- what there is of pods ---
# Those of a component and a pool that run and are not on their way out.
pods() {
    k get pods -l "app.kubernetes.io/component=$1,millpond/pool=$2" -o json | python3 -c '
import json, sys
for pod in json.load(sys.stdin)["items"]:
    if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]: print(pod["metadata"]["name"])'
}
# Processes of a pod that run here.
processes() {
    local uid
    uid=$(k get pod "$1" -o jsonpath='{.metadata.uid}')
    # Some end while this looks.
    for pid in $({ grep -lE "pod($uid|${uid//-/_})" /proc/[0-9]*/cgroup 2>/dev/null || true; } | cut -d/ -f3); do
        case $(readlink "/proc/$pid/exe" || true) in */pause | "") ;; *) echo "$pid" ;; esac
    done
}
kill9() {
    local found
    found=$(processes "$1")
    [ -n "$found" ] || fail "no processes of pod $1 can be seen here: is the node on this machine?"
    # Some may be gone with the first.
    for pid in $found; do kill -KILL "$pid" 2>/dev/null || true; done
}
replicas() { k get deploy millpond-worker-default -o jsonpath='{.spec.replicas}'; }
have_replicas() { [ "$(replicas)" = "$1" ] && [ "$(k get deploy millpond-worker-default -o jsonpath='{.status.readyReplicas}')" = "$1" ]; }
at_least() { [ "$(k get deploy millpond-worker-default -o jsonpath='{.status.readyReplicas}')" -ge "$1" ]; }
row() {
    k get hpa millpond-worker-default -o json | python3 -c '
import json, sys
status = json.load(sys.stdin)["status"]
cpu = [m["containerResource"]["current"].get("averageUtilization") for m in status.get("currentMetrics") or [] if "containerResource" in m]
print("%5s s   %5s %% of request   %s replicas, %s wanted   %s of %s tasks" % (sys.argv[1], cpu[0] if cpu else "?",
      status.get("currentReplicas"), status.get("desiredReplicas"), sys.argv[2], sys.argv[3]))' "$((SECONDS - began))" "$(ended "$1")" "$2"
}
# A port of this machine to one of a Service, also when the pod behind it is another.
forward() { # SERVICE PORT TO
    setsid bash -c 'while :; do kubectl --namespace "$0" port-forward "svc/$1" "$2:$3"; sleep 0.3; done' "$ns" "$@" >>"$work/forward.log" 2>&1 </dev/null &
    background+=($!)
}
# With all that was set before.
settings=()
upgrade() {
    settings+=("$@")
    helm upgrade millpond charts/millpond --values "$work/values.yaml" "${settings[@]}" --wait --timeout 5m >"$work/upgrade.log" 2>&1 ||
        fail "upgrade: $(tail -n 3 "$work/upgrade.log")"
    # A forwarded port ends with its pod, at the first use.
    until_true "the collector, through a forwarded port" 60 millpond job ls
}

if [ -n "${HOSTPATH_DIR:-}" ]; then
    setsid bash -c 'while :; do chmod 755 "$0"; chown 65532:65532 "$0"/*; sleep 0.3; done' "$HOSTPATH_DIR" >/dev/null 2>&1 </dev/null &
    background+=($!)
fi

# --- images, and a namespace with restricted pods only ---
if [ "${BUILD:-yes}" = yes ]; then
    for target in producer worker-python collector cli; do
        DOCKER_BUILDKIT=1 docker build --quiet --target "$target" --tag "millpond/$target:0.1.0" . >"$work/build.log" 2>&1 ||
            fail "build: $(tail -n 5 "$work/build.log")"
    done
fi
for image in millpond/{producer,worker-python,collector,cli}:0.1.0 nats:2.15-alpine; do
    $LOAD_IMAGE "$image" >"$work/load.log" 2>&1 || fail "$image cannot be loaded: $(tail -n 3 "$work/load.log")"
done
container=$(docker create millpond/cli:0.1.0)
docker cp "$container:/usr/local/bin/millpond" "$work/millpond" >/dev/null 2>&1
docker rm "$container" >/dev/null
step "images are in the cluster"
kubectl create namespace "$ns" >/dev/null
kubectl label namespace "$ns" pod-security.kubernetes.io/enforce=restricted >/dev/null
cp tests/kubernetes/values.yaml "$work/values.yaml"
for values in charts/millpond/ci/*-values.yaml tests/kubernetes/values.yaml; do
    helm template dry charts/millpond --values "$values" --skip-tests >"$work/dry.yaml"
    k apply --dry-run=server --filename "$work/dry.yaml" >"$work/dry.log" 2>&1 || fail "$values is refused: $(tail -n 3 "$work/dry.log")"
    if grep -i warning "$work/dry.log" >&2; then fail "$values is warned of"; fi
done
step "the API server takes what the chart makes of each values file"
k create configmap note --from-file=tests/kubernetes/note.py --from-file=tests/handlers/story.py >/dev/null
k apply --filename - >/dev/null <<'Y'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: runs }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Gi } } }
Y

# --- installed, and tried ---
helm install millpond charts/millpond --values "$work/values.yaml" --wait --timeout 5m >"$work/notes" || fail "install failed"
step "helm install --wait"
is "restarts of containers since" 0 "$(k get pods -o jsonpath='{.items[*].status.containerStatuses[*].restartCount}' | python3 -c 'import sys; print(sum(map(int, sys.stdin.read().split())))')"
helm test millpond >"$work/test.log" 2>&1 || fail "helm test: $(cat "$work/test.log"; k logs millpond-test)"
step "helm test: $(sed -n 's/^Phase: *//p' "$work/test.log")"
secret() { k get secret millpond-auth -o "jsonpath={.data.$1}" | base64 -d; }
read -r nats_port collector_port otlp_port < <(free_ports 3)
forward millpond-nats "$nats_port" 4222
forward millpond-collector "$collector_port" 7611
MILLPOND_NATS_URL=nats://client:$(secret client_password)@127.0.0.1:$nats_port
MILLPOND_TOKEN=$(secret token)
export MILLPOND_NATS_URL MILLPOND_TOKEN MILLPOND_COLLECTOR_URL=http://127.0.0.1:$collector_port MILLPOND_CONNECT_TIMEOUT=60s
until_true "the collector, through a forwarded port" 60 millpond job ls
is "submit square 12 --wait" 144 "$(millpond submit square 12 --wait)"
is "a handler in Python" true "$(millpond submit note '{}' --queue long --wait)"

# --- out and in by CPU ---
until_true "a figure of CPU at the autoscaler" 120 sh -c "kubectl -n $ns get hpa millpond-worker-default -o jsonpath='{.status.conditions[?(@.type==\"ScalingActive\")].status}' | grep -q True"
until_true "one worker" 120 have_replicas 1
began=$SECONDS
tasks 1 "$TASKS" busy 0.05 0.5 | submit_job scaled
step "$TASKS tasks of 50 to 500 ms, which compute: from 1 to $MOST workers"
upgraded=
while [ "$(ended scaled)" -lt "$TASKS" ]; do
    row scaled "$TASKS"
    if [ -z "$upgraded" ] && have_replicas "$MOST"; then
        # Something of another component changes: the workers' number is the autoscaler's alone.
        upgrade --set collector.podAnnotations.upgraded=under-load
        is "replicas after an upgrade under load" "$MOST" "$(replicas)"
        upgraded=yes
    fi
    sleep 15
done
[ -n "$upgraded" ] || fail "it never came to $MOST workers"
# These keep slots and no core: pods that have work are told to leave.
tasks 2 "$SLOW" idle 10 20 | submit_job slow
until have_replicas 1 && [ "$(ended slow)" = "$SLOW" ]; do
    row slow "$SLOW"
    [ "$((SECONDS - began))" -lt 2400 ] || fail "it does not come back to one worker"
    sleep 15
done
row slow "$SLOW"
joined scaled
is "scaled out and in: tasks, done, runs beyond one each" "$TASKS $TASKS 0" "$(counts scaled)"
is "of those that ran while it scaled in" "$SLOW $SLOW 0" "$(counts slow)"
is "workers that were killed at the end of their grace" 0 "$(k get events -o json | python3 -c '
import json, sys
print(sum(e["reason"] in ("ExceededGracePeriod", "OOMKilling", "BackOff", "Unhealthy") and "worker" in e["involvedObject"]["name"] and "probe failed" not in e["message"] for e in json.load(sys.stdin)["items"]))')"

# --- under load: rolled, killed, drained ---
sed -i 's/maxReplicas: 6/minReplicas: 3\n      maxReplicas: 6/' "$work/values.yaml"
upgrade
until_true "three workers" 180 at_least 3
# Some 200 tasks of 0.3 to 0.6 s for three workers: half a minute.
load() { # JOB
    tasks "$1" 200 busy 0.3 0.6 | submit_job "$1"
    until_true "the beginning of job $1" 120 begun "$1"
}
load rolled
upgrade --set-string "worker.podAnnotations.rolled=under-load"
joined rolled
is "all workers replaced under load: tasks, done, runs beyond one each" "200 200 0" "$(counts rolled)"

load killed
victim=$(pods worker default | sed -n 1p)
kill9 "$victim"
joined killed
read -r all done again < <(counts killed)
is "kill -9 of a worker's pod: tasks, done" "200 200" "$all $done"
[ "$again" -le 1 ] || fail "$again tasks have run again: more than the slots of one worker"
step "  runs beyond one each: $again"
until_true "the killed worker" 120 at_least 3

load nats
kill9 millpond-nats-0
until_true "NATS" 120 k wait --for=condition=Ready pod/millpond-nats-0 --timeout=60s
joined nats
is "kill -9 of NATS: tasks, done, runs beyond one each" "200 200 0" "$(counts nats)"

load restarted
k delete pod millpond-nats-0 --wait=false >/dev/null
k delete pod millpond-collector-0 --wait=false >/dev/null
joined restarted
is "NATS and collector restarted: tasks, done, runs beyond one each" "200 200 0" "$(counts restarted)"
# Not those that are done, of setup and test.
until_true "all pods" 180 k wait --for=condition=Ready pod --field-selector status.phase!=Succeeded --all --timeout=60s

load drained
node=$(kubectl get nodes -o jsonpath='{.items[0].metadata.name}')
before=$(pods worker default | sort)
# The only node: a pod that had to go finds no other place, so the budget of one holds the rest.
kubectl drain "$node" --ignore-daemonsets --delete-emptydir-data --timeout=25s \
    --pod-selector="app.kubernetes.io/instance=millpond,millpond/pool=default" >"$work/drain.log" 2>&1 && fail "the drain ended: no budget held it"
grep -q "disruption budget" "$work/drain.log" || fail "no budget held the drain: $(tail -n 3 "$work/drain.log")"
stayed=$(comm -12 <(echo "$before") <(pods worker default | sort) | grep -c .)
kubectl uncordon "$node" >/dev/null
is "workers that a drain of the node takes at once" 1 "$(($(echo "$before" | grep -c .) - stayed))"
joined drained
is "a node drained: tasks, done, runs beyond one each" "200 200 0" "$(counts drained)"
until_true "three workers" 180 at_least 3

# --- longer than the grace period ---
millpond submit sleep 12 --queue long --id longer >/dev/null
on() { millpond worker ls --json | python3 -c 'import json, sys
print(*[w["name"] for w in map(json.loads, sys.stdin) if w["queues"] == ["long"] and w["running"] > 0])'; }
runs_somewhere() { [ -n "$(on)" ]; }
until_true "a long task that runs" 60 runs_somewhere
first=$(on)
k delete pod "$first" --wait=true >/dev/null
until_true "its end" 120 millpond task result longer
is "a task longer than the drain, its pod deleted in mid-run: its result" "12.0" "$(millpond task result longer)"
is "  its attempts" "released at the pod that was gone, done at the other" "$(millpond task show longer --json | python3 -c '
import json, sys
names = ["at the other", "at the pod that was gone"]
print(", ".join("%s %s" % (a["status"], names[a["worker"] == sys.argv[1]]) for a in json.load(sys.stdin)["attempts"]))' "$first")"

# --- traces and logs, by the chart's Collector, of a task in a pod ---
elk=${ELK_DIR:-/var/tmp/millpond-elk}
if [ -n "${ON_NODE:-}" ] && [ -n "${NODE_ADDRESS:-}" ] && [ -x "$elk/otelcol/otelcol" ] && [ -e "$elk/search-engine/classes/Main.class" ]; then
    start() { # NAME COMMAND…: in the node's network
        setsid $ON_NODE "${@:2}" >>"$work/$1.log" 2>&1 </dev/null &
        background+=($!)
    }
    cp "$elk/otelcol/otelcol" "$work/otelcol"
    printf 'FROM gcr.io/distroless/cc-debian13:nonroot\nCOPY otelcol /otelcol\nENTRYPOINT ["/otelcol"]\n' >"$work/Dockerfile"
    DOCKER_BUILDKIT=1 docker build --quiet --tag millpond-test/otelcol:0.165.0 "$work" >"$work/build.log" 2>&1 || fail "otelcol: $(cat "$work/build.log")"
    $LOAD_IMAGE millpond-test/otelcol:0.165.0 >"$work/load.log" 2>&1
    start elasticsearch tests/elk/search-engine/start.sh "$elk/search-engine" "$work/home" 9200
    start templates env ELASTICSEARCH_URL=http://127.0.0.1:9200 SECRETS="$work" deploy/elasticsearch/setup.sh templates
    until_true "Elasticsearch, with its templates" 120 grep -q "templates are in place" "$work/templates.log"
    start logstash "${RUBY:-ruby}" tests/elk/logstash.rb 4319 http://127.0.0.1:9200 "$NODE_ADDRESS"
    upgrade --set otelCollector.enabled=true --set otelCollector.image.repository=millpond-test/otelcol \
        --set otelCollector.logstashUrl="http://$NODE_ADDRESS:4319"
    forward millpond-otel-collector "$otlp_port" 4318
    until_true "the Collector, through a forwarded port" 60 curl -s "http://127.0.0.1:$otlp_port"
    export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$otlp_port
    is "a task that is retried" done "$(millpond submit story '{"until": 3}' --id retried --wait >/dev/null && echo done)"
    trace=$(millpond task show retried --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["trace"])')
    # One publish, three waits and attempts, two exceptions, two lines of the child in each attempt.
    $ON_NODE python3 tests/elk/check.py http://127.0.0.1:9200 "$trace" retried 1 3 3 2 6
    $ON_NODE curl -sf "http://127.0.0.1:9200/traces-*,logs-*/_search?size=100&q=trace_id:$trace" >"$work/story"
    is "pods in the story of that task" "$(millpond task show retried --json | python3 -c 'import json, sys
print(*sorted({a["worker"] for a in json.load(sys.stdin)["attempts"]}))')" "$(python3 -c 'import json, sys
found = [hit["_source"] for hit in json.load(open(sys.argv[1]))["hits"]["hits"]]
work = [f for f in found if f.get("name", "process").split()[0] != "publish"]
assert len(work) == 3 + 3 + 2 + 6, len(work)
print(*sorted({f["resource"]["attributes"]["k8s.pod.name"] for f in work}))' "$work/story")"
    unset OTEL_EXPORTER_OTLP_ENDPOINT
    telemetry="tried"
else
    telemetry="NOT tried: it needs ON_NODE, NODE_ADDRESS, and what tests/elk.sh builds"
fi

# --- removed ---
helm uninstall millpond --wait >/dev/null 2>&1
queue=
[ "$telemetry" != tried ] || queue="persistentvolumeclaim/data-millpond-otel-collector-0 "
left() {
    k get all,configmap,secret,serviceaccount,pvc,pdb,hpa,networkpolicy,ingress -l app.kubernetes.io/instance=millpond -o name 2>/dev/null
    k get pvc -o name
}
# Pods drain.
pods_are_gone() { [ -z "$(k get pods -o name)" ]; }
until_true "the end of all pods" 120 pods_are_gone
is "what is left after helm uninstall" \
    "persistentvolumeclaim/data-millpond-nats-0 ${queue}persistentvolumeclaim/runs persistentvolumeclaim/store-millpond-collector-0 secret/millpond-auth" \
    "$(left | sort -u | paste -sd' ')"
step "traces and logs in Elasticsearch: $telemetry"
step "kubernetes.sh: all of it is as it should be"
