export NATS_URL="$MILLPOND_NATS_URL"
nats req --raw call.default.square 12
nats req call.default.fail '{"how": "error"}' 2>&1 |
    sed -n 's/^Nats-Service-Error-Code: *\([0-9]*\).*/\1/p; s/.*"type":"\([a-z]*\)".*/\1/p' | paste -sd ' '
nats req call.default.nobody 1 2>&1 | grep -qi 'no responders' && echo "no worker answers"
