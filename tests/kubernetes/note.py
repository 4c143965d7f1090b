"""A handler that notes each start in a file that all workers share, and then computes, or waits, for as long as it is told:
{"busy": SECONDS} or {"idle": SECONDS}."""

import json
import sys
import time

for line in sys.stdin:
    task = json.loads(line)
    if "id" not in task:
        break
    with open("/runs/started", "a") as started:
        print(task["id"], file=started)
    until = time.monotonic() + task["args"].get("busy", 0)
    while time.monotonic() < until:
        pass
    time.sleep(task["args"].get("idle", 0))
    print(json.dumps({"ok": True}), flush=True)
