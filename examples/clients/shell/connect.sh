# `nats` takes the URL that `millpond env` prints from this variable; each of the other programs begins with it.
export NATS_URL="$MILLPOND_NATS_URL"
nats rtt >&2
