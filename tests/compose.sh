#!/usr/bin/env bash
# The cluster in containers, from `git clone` on: build, up, the main job, scaling in mid-job, each container killed under
# load and all at once, down and up again; who may do what in them, and what they tell. Needs a Docker engine with compose
# (tests/containers/engine.sh gets one), git and python3. Traffic stays in the networks that it makes.
#
#   tests/compose.sh [--keep]     --keep leaves the cluster as it is at the end
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh

keep=${1:-}
here=$PWD
work=$(mktemp -d)
export COMPOSE_PROJECT_NAME=millpond-test-$$
# Free ports, so that it runs beside another cluster.
read -r MILLPOND_NATS_PORT MILLPOND_PRODUCER_PORT MILLPOND_COLLECTOR_PORT < <(free_ports 3)
export MILLPOND_NATS_PORT MILLPOND_PRODUCER_PORT MILLPOND_COLLECTOR_PORT
export MILLPOND_WORKER_DRAIN_TIME=20s MILLPOND_WORKER_BUILT_IN='*' DOCKER_BUILDKIT=1
# The largest that an image may add to its base, in MiB.
IMAGE_MIB_MAX=60

# Slots of a worker of this test.
SLOTS=4

cleanup() {
    local code=$?
    if [ "$code" != 0 ]; then
        for service in nats setup producer collector worker; do
            docker compose logs --no-color --tail 12 "$service" 2>&1 | cut -c -300 >&2 || true
        done
        docker compose ps -a --format 'table {{.Name}}\t{{.Status}}' >&2 || true
        echo "${FAILURE:-compose.sh: a command failed, after the last step above}" >&2
    fi
    if [ "$keep" != --keep ]; then
        docker compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
        docker image rm --force "$COMPOSE_PROJECT_NAME" >/dev/null 2>&1 || true
        rm -rf "$work"
    fi
    exit "$code"
}
trap cleanup EXIT

millpond() { docker compose run --rm --no-deps -T cli "$@" </dev/null 2>>"$work/cli.log"; }
up() { docker compose up --detach --wait --wait-timeout 120 "$@" >>"$work/up.log" 2>&1 || fail "up failed: $(tail -n 5 "$work/up.log")"; }
containers() { docker compose ps --quiet "$@"; }
# Of the tasks of a job: how many there are, how many have ended well, and how many runs there were beyond one each: the
# handler notes each start in a file of the volume that all workers share.
counts() {
    docker compose exec -T worker cat /var/lib/millpond/data/started >"$work/started"
    millpond task export --job "$1" | python3 -c '
import json, sys
rows = [json.loads(line) for line in sys.stdin]
started = [line for line in open(sys.argv[2]).read().split() if line.startswith(sys.argv[1] + ".")]
assert set(started) == {row["id"] for row in rows}, "not what was published has run"
print(len(rows), sum(row["status"] == "done" for row in rows), len(started) - len(set(started)))' "$1" "$work/started"
}
# Publishes a job of COUNT tasks that take SECONDS each; returns when they are stored.
submit_job() { # JOB COUNT SECONDS
    python3 -c 'import sys; print(*[sys.argv[2]] * int(sys.argv[1]), sep="\n")' "$2" "$3" |
        docker compose run --rm --no-deps -T cli map note - --batch 1 --no-wait --job "$1" >/dev/null 2>>"$work/cli.log"
}
# Until some of a job has ended: then it is in its middle.
begun() {
    for _ in $(seq 120); do
        [ "$(millpond job show "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin).get("done", 0) > 3)')" = True ] && return
        sleep 0.2
    done
    fail "job $1 does not begin"
}

git clone --quiet "$here" "$work/millpond"
cd "$work/millpond"
for profile in "" elk metrics; do
    docker compose ${profile:+--profile "$profile"} config --quiet 2>"$work/config.log" || fail "config $profile: $(cat "$work/config.log")"
    [ ! -s "$work/config.log" ] || fail "config $profile: $(cat "$work/config.log")"
done
docker compose -f docker-compose.yml -f docker-compose.ha.yml config --quiet
step "docker compose config is clean: default, elk, metrics, ha"
docker compose build --quiet >"$work/build.log" 2>&1 || fail "build: $(tail -n 20 "$work/build.log")"
step "built"

# --- the command line without a cluster: it starts nothing, and says what does ---
began=$(date +%s%N)
docker compose run --rm -T cli submit square 12 </dev/null >"$work/without" 2>&1 && fail "a task is published without a cluster"
took=$((($(date +%s%N) - began) / 1000000))
grep -q 'docker compose up -d --wait' "$work/without" || fail "without a cluster it says: $(cat "$work/without")"
is "containers that the command line has started" 0 "$(docker compose ps --all --quiet | wc -l)"
step "without a cluster it says what starts one, after $took ms"

# --- docs/containers.md: the first block of commands, line by line; `down` is tried further down ---
# What exists and since when it runs: a command of a user's changes nothing of it.
state() { docker compose ps --all --quiet | xargs docker inspect --format '{{.Name}} {{.Id}} {{.State.StartedAt}}' | sort; }
awk '/^```/ { block++; next } block == 1' docs/containers.md >"$work/commands"
while IFS= read -r line <&3; do
    command=$(sed 's/ *#.*//' <<<"$line")
    case $command in
    "git clone"* | *"compose down"*) continue ;;
    export*)
        eval "$command"
        continue
        ;;
    *"logs -f"*)
        timeout 5 bash -c "$command" >"$work/said" 2>&1 </dev/null || true
        grep -q "worker ready" "$work/said" || fail "$command shows no worker: $(tail -n 3 "$work/said")"
        ;;
    *"compose up"*) bash -c "$command" >"$work/said" 2>&1 </dev/null || fail "$command: $(tail -n 5 "$work/said")" ;;
    *)
        state >"$work/state"
        bash -c "$command" >"$work/said" 2>"$work/cli.log" </dev/null || fail "$command: $(tail -n 5 "$work/cli.log")"
        state | diff "$work/state" - >&2 || fail "$command has changed what runs"
        ;;
    esac
    step "docs/containers.md: $command"
    case $line in *"# 144") is "  its output" 144 "$(cat "$work/said")" ;; esac
done 3<"$work/commands"
is "workers, after all of these" 4 "$(containers worker | wc -l)"
is "names of workers" "$(docker compose ps --format '{{.Name}}' worker | sort | paste -sd' ')" \
    "$(millpond worker ls --json | python3 -c 'import json, sys; print(*sorted(json.loads(line)["name"] for line in sys.stdin))')"
(
    umask 022
    eval "$(grep -F 'cli env --host' docs/containers.md)"
)
is "mode of the file with passwords" 600 "$(stat -c %a .millpond/env)"
fastest=
for _ in 1 2 3; do
    began=$(date +%s%N)
    millpond job ls >/dev/null
    took=$((($(date +%s%N) - began) / 1000000))
    [ -n "$fastest" ] && [ "$fastest" -le "$took" ] || fastest=$took
done
[ "$fastest" -le 2000 ] || fail "docker compose run takes $fastest ms"
step "docker compose run: $fastest ms"
# The first process of its container, at a terminal and without: Ctrl-C and SIGTERM end it.
python3 tests/containers/interrupt.py docker compose run --rm --name "$COMPOSE_PROJECT_NAME-waits" cli job wait nothing ||
    fail "Ctrl-C does not end docker compose run"
step "docker compose run: one Ctrl-C ends it, and says what to do next"
docker compose run --rm --detach --name "$COMPOSE_PROJECT_NAME-stops" cli job wait nothing >/dev/null 2>>"$work/cli.log"
until_true "a command that handles signals" 20 python3 tests/containers/interrupt.py --listens "$COMPOSE_PROJECT_NAME-stops"
docker kill --signal TERM "$COMPOSE_PROJECT_NAME-stops" >/dev/null
gone() { ! docker inspect "$COMPOSE_PROJECT_NAME-stops"; }
until_true "the end of a command at SIGTERM" 5 gone
docker run --rm --read-only --tmpfs /var/lib/millpond/data:uid=0,gid=0,mode=755 --env MILLPOND_TOKEN=a-token-of-a-test \
    --env MILLPOND_COLLECTOR_NATS_URL=nats://collector@127.0.0.1:1 millpond/collector:0.1.0 >"$work/unwritable" 2>&1 &&
    fail "a collector runs without a store"
grep -q 'is of user 0 and group 0, mode 0755, and this process is user 65532' "$work/unwritable" || fail "of a volume it may not write it says: $(cat "$work/unwritable")"
step "a volume that cannot be written is told with owner and mode"
up --scale worker=1 --no-recreate

# --- handlers of a user's in Python: two lines make the image ---
docker build --quiet --target worker-python --build-arg PROFILE="${MILLPOND_BUILD_PROFILE:-release}" --tag millpond/worker-python:0.1.0 . >/dev/null
mkdir "$work/mine"
cat >"$work/mine/handlers.toml" <<T
[note]
command = ["python3", "note.py"]
# Few, so that there is a mid-job to scale and to kill in.
slots = $SLOTS
T
cat >"$work/mine/note.py" <<'P'
import json, sys, time
for line in sys.stdin:
    task = json.loads(line)
    if "id" not in task:
        break
    with open("/var/lib/millpond/data/started", "a") as started:
        print(task["id"], file=started)
    time.sleep(task["args"])
    print(json.dumps({"ok": task["args"]}), flush=True)
P
printf 'FROM millpond/worker-python:0.1.0\nCOPY . /handlers/\n' >"$work/mine/Dockerfile"
docker build --quiet --tag "$COMPOSE_PROJECT_NAME" "$work/mine" >/dev/null
cat >"$work/mine.yml" <<Y
services:
  # Asked for their health more often than by default, because this script waits for it at each step from here on.
  producer: { healthcheck: { interval: 1s } }
  collector: { healthcheck: { interval: 1s } }
  worker: { healthcheck: { interval: 1s }, image: "$COMPOSE_PROJECT_NAME", build: !reset null }
Y
export COMPOSE_FILE=docker-compose.yml:$work/mine.yml
up
is "a handler in Python" 0.5 "$(millpond submit note 0.5 --wait)"

# --- workers 1 -> 4 -> 1 in mid-job ---
submit_job scaled 600 0.1
begun scaled
up --scale worker=4 --no-recreate
is "workers, in mid-job" 4 "$(containers worker | wc -l)"
sleep 2
up --scale worker=1 --no-recreate
is "workers, still in mid-job" 1 "$(containers worker | wc -l)"
joined scaled
is "tasks, done, runs beyond one each" "600 600 0" "$(counts scaled)"

# --- each container killed in turn, under load, then all at once ---
n=0
for service in nats producer collector worker; do
    n=$((n + 1))
    submit_job "killed-$service" 300 0.1
    begun "killed-$service"
    containers "$service" | xargs docker kill --signal KILL >/dev/null
    up --no-recreate
    joined "killed-$service"
    read -r all done again < <(counts "killed-$service")
    is "$service killed: tasks, done" "300 300" "$all $done"
    [ "$again" -le "$SLOTS" ] || fail "$again tasks have run again: more than the slots of one worker"
    step "  runs beyond one each: $again"
done
submit_job killed-all 300 0.1
millpond submit fail '{"how": "fatal"}' --id letter >/dev/null
begun killed-all
containers | xargs docker kill --signal KILL >/dev/null
is "containers that run" 0 "$(docker compose ps --quiet --status running | wc -l)"
up --no-recreate
joined killed-all
read -r all done again < <(counts killed-all)
is "all killed: tasks, done" "300 300" "$all $done"
[ "$again" -le "$SLOTS" ] || fail "$again tasks have run again: more than the slots of one worker"
step "  runs beyond one each: $again"
# A crash, not an order: the engine starts it again by itself.
worker=$(containers worker)
before=$(docker inspect --format '{{.RestartCount}}' "$worker")
kill -KILL "$(docker inspect --format '{{.State.Pid}}' "$worker")"
for _ in $(seq 60); do
    [ "$(docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' "$worker")" = "$((before + 1)) healthy" ] && break
    sleep 0.5
done
is "a crashed worker is healthy after restarts" "$((before + 1)) healthy" \
    "$(docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' "$worker")"

# --- SIGTERM lets run what runs ---
submit_job drained 4 4
for _ in $(seq 50); do
    [ "$(millpond worker ls --json | python3 -c 'import json, sys; print(sum(json.loads(line).get("running", 0) for line in sys.stdin))')" -gt 0 ] && break
    sleep 0.2
done
docker compose stop worker >/dev/null 2>&1
is "exit code of a worker that was stopped" 0 "$(docker inspect --format '{{.State.ExitCode}}' "$worker")"
up
joined drained
is "stopped in mid-task: tasks, done, runs beyond one each" "4 4 0" "$(counts drained)"

# --- down and up keep everything ---
what() {
    millpond job ls --json | python3 -c '
import json, sys
print(sorted((r["job"], r["done"], r["dead"]) for r in map(json.loads, sys.stdin)))'
    millpond job results killed-nats | sha256sum
    millpond dead ls --json | python3 -c 'import json, sys; print(sorted(json.loads(line)["id"] for line in sys.stdin))'
}
what >"$work/before"
docker compose down >/dev/null 2>&1
up
what >"$work/after"
diff "$work/before" "$work/after" >&2 || fail "down and up have changed what is stored"
grep -q letter "$work/after" || fail "the dead letter is gone"
step "down and up: jobs, results and dead letters are the same"

# --- what a container may, and what it tells ---
token=$(docker compose exec -T collector millpond-collector token)
answer() { python3 -c '
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
try: print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as refused: print(refused.code)' "$@"; }
is "the token opens the API" 200 "$(answer "http://127.0.0.1:$MILLPOND_COLLECTOR_PORT/api/v1/tasks" "$token")"
is "another does not" 401 "$(answer "http://127.0.0.1:$MILLPOND_COLLECTOR_PORT/api/v1/tasks" another-token)"
millpond env >"$work/secrets"
for container in $(containers); do
    name=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}}' "$container")
    pid=$(docker inspect --format '{{.State.Pid}}' "$container")
    status() { awk -v field="$1:" '$1 == field { print $2 }' "/proc/$pid/status"; }
    is "$name: user, rights, rights it may get, no new ones" "65532 0000000000000000 0000000000000000 1" \
        "$(status Uid) $(status CapEff) $(status CapBnd) $(status NoNewPrivs)"
    grep -q ' / [a-z]* ro[, ]' "/proc/$pid/mounts" || fail "$name: its root can be written"
    grep -q docker.sock "/proc/$pid/mounts" && fail "$name: it sees the engine"
    limits=$(docker inspect --format '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.Privileged}} {{.HostConfig.PidMode}}{{.HostConfig.IpcMode}}' "$container")
    [[ $limits =~ ^[1-9][0-9]*\ [1-9][0-9]*\ false\ private$ ]] || fail "$name: limits are $limits"
    ports=$(docker inspect --format '{{range .HostConfig.PortBindings}}{{range .}}{{.HostIp}} {{end}}{{end}}' "$container")
    [[ $ports =~ ^(127\.0\.0\.1\ )*$ ]] || fail "$name: it is open at $ports"
done
# A worker runs what others wrote: it sees its own password and no other.
is "what a worker sees of the secrets" nats_password "$(ls "/proc/$(docker inspect --format '{{.State.Pid}}' "$(containers worker)")/root/run/millpond")"
containers | xargs docker inspect >"$work/inspect"
for container in $(containers); do docker top "$container" -eo pid,args; done >"$work/ps"
for container in $(containers); do tr '\0' '\n' <"/proc/$(docker inspect --format '{{.State.Pid}}' "$container")/environ"; done >"$work/environ"
docker compose logs --no-color >"$work/logs" 2>&1
docker compose config >"$work/config"
for image in producer worker collector cli; do
    docker history --no-trunc "millpond/$image:0.1.0"
    docker inspect "millpond/$image:0.1.0"
done >"$work/images"
python3 - "$work" <<'P'
import re, sys
work = sys.argv[1]
read = lambda name: open(f"{work}/{name}", errors="replace").read()
lines = read("secrets")
secrets = set(re.findall(r"//[a-z]+:([^@]+)@", lines)) | set(re.findall(r"TOKEN='([^']+)'", lines))
assert len(secrets) >= 4 and min(map(len, secrets)) > 20, len(secrets)
for name in ["inspect", "ps", "environ", "logs", "config", "images"]:
    text = read(name)
    assert len(text) > 100, name
    told = [secret[:4] for secret in secrets if secret in text]
    assert not told, f"{name} tells {told}"
P
step "no secret in docker inspect, ps, the environment, logs, docker compose config, images"
size() { docker image inspect --format '{{.Size}}' "$1"; }
for image in producer worker collector cli; do
    mib=$((($(size "millpond/$image:0.1.0") - $(size gcr.io/distroless/cc-debian13:nonroot)) / 1024 / 1024))
    [ "$mib" -lt "$IMAGE_MIB_MAX" ] || fail "$image: $mib MiB beyond its base"
    step "$image: $mib MiB beyond its base"
done

step "compose.sh: all of it is as it should be"
