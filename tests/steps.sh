# What the scripts of this folder share; they source it. Those that call `joined` have a function or program `millpond`.
# shellcheck shell=bash

step() { printf '%5ss  %s\n' "$SECONDS" "$*"; }
# What ended the script; a script that prints logs at its end prints this after them.
FAILURE=
fail() {
    FAILURE="${0##*/}: $*"
    printf '%s\n' "$FAILURE" >&2
    exit 1
}
is() { # is WHAT EXPECTED GOT
    [ "$2" = "$3" ] || fail "$1: expected $2, got $3"
    step "$1: $3"
}
until_true() { # until_true WHAT SECONDS COMMAND…
    local end=$((SECONDS + $2))
    until "${@:3}" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain: $1"
        sleep 0.3
    done
}
# So many ports of 127.0.0.1 that nobody listens on.
free_ports() {
    python3 -c 'import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
[s.bind(("127.0.0.1", 0)) for s in held]
print(*(s.getsockname()[1] for s in held))' "$1"
}
# Waits until a job has ended, whatever the collector does meanwhile.
joined() { # JOB
    for _ in $(seq 40); do
        if millpond job wait "$1" --timeout 60s >/dev/null; then return; fi
        sleep 1
    done
    fail "job $1 has not ended: $(millpond job show "$1")"
}
