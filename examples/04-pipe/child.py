"""The child's end of the pipe: `conn.recv()` is a line of input, `conn.send(x)` a line of output."""
import json, os, sys


def send(x):
    print(json.dumps(x), flush=True)


send({"hello": json.loads(os.environ["MILLPOND_ARGS"])})  # It may speak first.
heard = 0
for line in sys.stdin:  # Ends when the parent closes, as `conn.recv()` raises EOFError.
    n = json.loads(line)
    if n == "bye":
        sys.exit(0)  # Closes from this side.
    heard += 1
    send(n - 1)
send({"heard": heard})  # The parent has closed, and still listens.
