#!/bin/sh
# A bounded queue, two workers that know only the server's URL, a master; then a wrong key, and no server.
set -eu
m=${MILLPOND:-millpond}
url=$(sed -n "s/^MILLPOND_WORKER_NATS_URL=//p" "${MILLPOND_STATE:-.millpond}/env" | tr -d "'\"")
tmp=$(mktemp -d)
trap 'rm -r "$tmp"' EXIT

"$m" queue set squares --max-waiting 100
# `env -i`: as on another machine, with nothing of this cluster but the URL.
for name in left right; do
    env -i PATH="$PATH" HOME="$tmp" MILLPOND_WORKER_NATS_URL="$url" \
        "$m" --state "$tmp/none" worker run --name "$name" --built-in square --queues squares --slots 1 --idle-exit 10s 2> "$tmp/$name.log" &
done
until [ "$("$m" worker ls --json | grep -c '"squares"')" = 2 ]; do sleep 0.1; done

"$m" map square --range 1..=100 --queue squares --job "squares-$$" --json > "$tmp/results"
echo "sum of squares: $(grep -o '"result":[0-9]*' "$tmp/results" | cut -d: -f2 | awk '{ sum += $1 } END { print sum }')"
wait
echo "both workers have left"

away() { # The exit code, and the error; 124 would be a wait for more than five seconds.
    timeout 5 "$@" 2> "$tmp/error" && code=0 || code=$?
    echo "exit code $code: $(grep -o 'cannot connect to NATS' "$tmp/error")"
}
host=${url#*@}
echo "wrong key: $(away env MILLPOND_NATS_URL="nats://client:wrong@$host" "$m" submit square 1 --connect-timeout 2s)"
echo "no server: $(away env MILLPOND_NATS_URL="nats://client:wrong@127.0.0.1:1" "$m" submit square 1 --connect-timeout 2s)"
