#!/bin/sh
# One worker whose four children write 2500 lines each, all into one file, which is the argument.
set -eu
m=${MILLPOND:-millpond}
here=$(dirname "$0")
log=${1:-pool.log}
"$m" worker run --name logs --handlers "$here/handlers.toml" --log-json --log-file "$log" 2> /dev/null &
worker=$!
trap 'kill "$worker"' EXIT
# All four are there before there is work, so that each gets a share of it.
until [ "$("$m" worker ls --json | grep -o '"state":"idle"' | wc -l)" -eq 4 ]; do sleep 0.2; done
printf '2500\n2500\n2500\n2500\n' | "$m" map chatter - --batch 1
trap - EXIT
kill "$worker"
wait "$worker"
for child in 1 2 3 4; do
    echo "logs/chatter-$child $(grep '"message":"line ' "$log" | grep -c "\"child\":\"logs/chatter-$child\"")"
done
