# `nats` takes the URL that `millpond env` prints from this variable; each of the other programs begins with it.
export NATS_URL="$MILLPOND_NATS_URL"
# Fails where it cannot connect. (`nats rtt` takes no user from a URL, and `nats server ping` is for the system account.)
nats kv info millpond_shared > info 2>&1 || { cat info >&2; exit 1; }
