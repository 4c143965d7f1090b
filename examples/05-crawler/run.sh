#!/bin/sh
# A hundred URLs of a server of our own: 90 are good, 4 answer 500, 3 do not answer, 3 are refused.
set -eu
m=${MILLPOND:-millpond}
here=$(dirname "$0")
tmp=$(mktemp -d)
mkfifo "$tmp/port"
python3 "$here/server.py" > "$tmp/port" &
server=$!
trap 'kill "$server"; rm -r "$tmp"' EXIT
read -r port < "$tmp/port"

awk -v good="http://127.0.0.1:$port" -v nobody="http://127.0.0.1:1" 'BEGIN {
    for (i = 1; i <= 100; i++) {
        url = good "/page/" i
        if (i % 10 == 0) url = i <= 40 ? good "/broken/" i : i <= 70 ? good "/slow/" i : nobody "/" i
        printf "{\"url\": \"%s\", \"tries\": 3, \"timeout_ms\": 2000}\n", url
    }
}' > "$tmp/urls"

# Exit code 1: some failed, as they must.
"$m" map fetch "$tmp/urls" --batch 1 --attempts-max 1 --json > "$tmp/pages" || [ $? = 1 ]
good=$(grep -c '"status":"done"' "$tmp/pages")
bad=$(grep -c '"status":"dead"' "$tmp/pages")
echo "$good good, $bad bad"

# Workers tell their counts every 2 s.
until "$m" worker ls --json | python3 "$here/successes.py" "$good"; do sleep 1; done
