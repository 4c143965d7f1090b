#!/bin/sh
# Eight tasks on two workers with two children each: every line tells who ran it.
set -eu
m=${MILLPOND:-millpond}
printf '"%s"\n' ann bob cid dan eve fay gus hal | "$m" map hello - --batch 1
