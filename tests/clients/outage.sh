#!/usr/bin/env bash
# Publishes a task and prints its end, over any outage of the server: it is asked for by its id. Needs `nats` and `jq`.
#
#   eval "$(millpond env)"
#   ./outage.sh default square 12 order-7
set -euo pipefail
queue=$1 kind=$2 arguments=$3 id=$4
export NATS_URL=$MILLPOND_NATS_URL NATS_TIMEOUT=1s

# `nats req` exits 0 for a refusal too, `pub --jetstream` does not. What was not acknowledged may be stored all the same:
# published again with the same id, it is a duplicate.
until nats pub --jetstream -H "Nats-Msg-Id:$id" "tasks.$queue.$kind" "$arguments" >&2; do sleep 0.5; done

question=$(jq -cn --arg queue "$queue" --arg kind "$kind" --arg id "$id" '$ARGS.named')
while :; do
    # Nothing is answered without a connection, or while no collector has one.
    answer=$(nats req --raw ctl.request.results "$question" 2>/dev/null || true)
    end=$(jq -c '.ok.rows[]? | select(.status | IN("done", "dead", "cancelled")) | {id, status, result, failure}' \
        <<<"$answer" 2>/dev/null || true)
    [ -z "$end" ] || break
    sleep 0.5
done
printf '%s\n' "$end"
