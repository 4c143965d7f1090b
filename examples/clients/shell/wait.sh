# By HTTP, whose answers a shell can tell apart: the same again, with the same key, until it is stored; then asked until it has ended.
token="Authorization: Bearer $MILLPOND_TOKEN"
until curl -fs -o stored -H "$token" -H "Idempotency-Key: $1" -d "$2" "$MILLPOND_PRODUCER_URL/v1/tasks/default/sleep"; do sleep 1; done
ended='s/.*"status":"\(done\|dead\|cancelled\)".*/\1/p'
until curl -fs -H "$token" "$MILLPOND_COLLECTOR_URL/api/v1/task?queue=default&id=$1" | sed -n "$ended" | grep .; do sleep 1; done
