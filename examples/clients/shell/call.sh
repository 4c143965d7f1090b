export NATS_URL="$MILLPOND_NATS_URL"
nats req --raw call.default.square 12 | head -n 1
nats req call.default.fail '{"how": "error"}' > answer 2>&1
echo "$(sed -n 's/.*Nats-Service-Error-Code: *//p' answer) $(sed -n 's/.*"type":"\([a-z]*\)".*/\1/p' answer)"
nats req call.default.nobody 1 2>&1 | grep -qi 'no responders' && echo "no worker answers"
