export NATS_URL="$MILLPOND_NATS_URL"
token="Authorization: Bearer $MILLPOND_TOKEN"
printf '"%s"' "$(head -c 3000000 /dev/zero | tr '\0' x)" > large
curl -fs -D head -o stored -H "$token" -H "Expect:" -T large "$MILLPOND_PRODUCER_URL/v1/payloads"
ref=$(sed -n 's/^millpond-ref: //Ip' head | tr -d '\r')
expires=$(sed -n 's/.*"expires":"\([^"]*\)".*/\1/p' stored)
nats pub --jetstream tasks.default.echo "" -H "Nats-Msg-Id:$1" -H "Millpond-Ref:$ref" -H "Millpond-Expires:$expires" > log 2>&1 || cat log >&2
# 404 until it has ended.
until curl -fs -H "$token" -o result "$MILLPOND_COLLECTOR_URL/api/v1/task/result?queue=default&id=$1"; do sleep 1; done
cmp large result && echo "the same"
