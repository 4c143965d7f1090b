export NATS_URL="$MILLPOND_NATS_URL"
id=$(date +%s%N)
at=$(date -u -d "+3 seconds" +%Y-%m-%dT%H:%M:%SZ)
nats sub --raw --count 1 "reply.$id" > replies &
sleep 1
nats pub --jetstream later.default.square 12 -H "Millpond-At:$at" -H "Millpond-Reply-To:reply.$id" > stored 2>&1 || { cat stored >&2; exit 1; }
wait
sed -n 's/.*"result":\([0-9]*\).*/\1/p' replies
[ "$(date -u +%Y-%m-%dT%H:%M:%SZ)" \< "$at" ] && echo "too early" || echo "not before its time"
