export NATS_URL="$MILLPOND_NATS_URL"
nats kv put millpond_shared "$1" 5 > log
first=$(nats kv get millpond_shared "$1" | sed -n 's/.*revision: *\([0-9]*\).*/\1/p')
nats kv update millpond_shared "$1" 6 "$first" > log
nats kv update millpond_shared "$1" 7 "$first" > log 2>&1 || echo "another was faster"
value=$(nats kv get --raw millpond_shared "$1")
nats kv ls millpond_shared | grep -q "$1" && echo "$value listed"
timeout 3 nats kv watch millpond_shared "$1" > watched || true
sed -n "s/.*$1: *\([0-9]*\).*/\1/p" watched | head -n 1
