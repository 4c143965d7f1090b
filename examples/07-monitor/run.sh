#!/bin/sh
# Four children that compute and hold memory; what they use, every 2 s.
set -eu
m=${MILLPOND:-millpond}
here=$(dirname "$0")
for mib in 20 40 60 80; do
    echo "{\"seconds\": 7, \"mib\": $mib}"
done | "$m" map burn - --batch 1 > /dev/null &
for _ in 1 2 3 4; do
    sleep 2
    "$m" worker ls --json | python3 "$here/show.py"
    echo
done
wait
