export NATS_URL="$MILLPOND_NATS_URL"
code() { "$@" > log 2>&1; echo "exit code $?"; }
echo "a subject of another shape: $(code nats pub --jetstream tasks.default 12)"
head -c 1500000 /dev/zero | tr '\0' 1 > large
echo "too large: $(code sh -c 'nats pub --jetstream --force-stdin tasks.default.echo < large')"
alone="Nats-Expected-Last-Subject-Sequence:0"
code nats pub --jetstream "tasks.default.sleep.u-$1" 5 -H "$alone" > first
echo "a unique key that is taken: $(code nats pub --jetstream "tasks.default.sleep.u-$1" 5 -H "$alone")"
echo "not allowed: $(code nats pub --jetstream results.not.allowed.here 12)"
