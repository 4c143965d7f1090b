#!/bin/sh
# A plain call; a conversation where each side waits for the other; one that the child closes.
set -eu
m=${MILLPOND:-millpond}
here=$(dirname "$0")

echo "call: $("$m" call square 12)"

python3 "$here/parent.py"

printf '7\n8\n"bye"\n' | "$m" call child '"shell"' --pipe
