#!/bin/sh
# Four tasks, one of which always raises: it is tried three times, then it is a dead letter.
set -eu
m=${MILLPOND:-millpond}
job=roots-$(date +%s)-$$
# Exit code 1: one failed, as it must.
printf '4\n9\n-1\n16\n' | "$m" map square_root - --batch 1 --job "$job" || [ $? = 1 ]
# Letters come to the collector by a way of their own.
until id=$("$m" dead ls --job "$job" 2> /dev/null | awk 'NR == 2 { print $1 }') && [ -n "$id" ]; do sleep 1; done
"$m" dead show "$id"
