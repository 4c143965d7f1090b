#!/bin/sh
# The forms of a pool: map, map_async, apply, apply_async with a callback.
set -eu
m=${MILLPOND:-millpond}
job=primes-$(date +%s)-$$

echo "map: $("$m" map is_prime --range 1..=10000 | grep -c true) primes"

"$m" map is_prime --range 1..=10000 --job "$job" > /dev/null &
echo "map_async: the job is $job"
"$m" job wait "$job" --timeout 60s
wait
echo "map_async: $("$m" job results "$job" | grep -c true) primes"

echo "apply: $("$m" submit is_prime 9973 --wait)"

{ prime=$("$m" submit is_prime 9975 --wait) && echo "apply_async: the callback hears $prime"; } &
wait
