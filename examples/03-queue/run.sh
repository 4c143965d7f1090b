#!/bin/sh
# Two producers, a queue of ten, one consumer; join, and the end signal.
set -eu
m=${MILLPOND:-millpond}
run=$(date +%s)-$$
here=$(dirname "$0")

"$m" queue set line --max-waiting 10
seq 1 40 | "$m" map eat - --queue line --job "a-$run" --no-wait &
seq 101 160 | "$m" map eat - --queue line --job "b-$run" --no-wait &
until "$m" queue ls --json | grep '"queue":"line"' | grep -q '"waiting":10'; do sleep 0.1; done
echo "full: 10 wait, both producers block"

"$m" worker run --name consumer --queues line --handlers "$here/handlers.toml" 2> consumer.log &
consumer=$!
"$m" job wait "a-$run" "b-$run"
echo "joined: $("$m" job results "a-$run" | wc -l) and $("$m" job results "b-$run" | wc -l) items"
consumers=$({ "$m" job results "a-$run"; "$m" job results "b-$run"; } | grep -o '"consumer":[0-9]*' | sort -u | wc -l)
echo "consumers: $consumers"

"$m" worker drain consumer --wait
wait "$consumer"
