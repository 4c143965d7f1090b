export NATS_URL="$MILLPOND_NATS_URL"
# It exits 1 when the task is not stored; `nats req` exits 0 whatever the answer is.
stored=$(nats pub --jetstream tasks.default.square 12 2>&1) || { echo "$stored" >&2; exit 1; }
echo "$stored" | sed -n 's/.*Stored in Stream: \([A-Z]*\).*/stored in \1/p'
