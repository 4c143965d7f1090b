export NATS_URL="$MILLPOND_NATS_URL"
for time in first second; do
    stored=$(nats pub --jetstream -H "Nats-Msg-Id:$1" tasks.default.square 12 2>&1) || exit 1
    case $stored in *Duplicate:\ true*) echo duplicate ;; *) echo stored ;; esac
done
