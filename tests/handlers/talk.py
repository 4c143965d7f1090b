"""A handler that converses, for tests/calls.rs: what a message says, it does."""
import json, os, sys

for line in sys.stdin:
    line = line.rstrip("\n")
    if line == "pid":
        print(os.getpid(), flush=True)
    elif line == "args":
        print(os.environ["MILLPOND_ARGS"], flush=True)
    elif line == "fail":
        print("last words", flush=True)
        print("about to fail", file=sys.stderr, flush=True)
        sys.exit(3)
    elif line == "leave":
        sys.exit(0)
    elif line.startswith("count "):
        for n in range(int(line[6:])):
            print(n)
        sys.stdout.flush()
    else:
        print(f"heard {line}", flush=True)
print("closed", flush=True)
