"""The consumer of the original: it takes an item, works on it, and says that it is done."""
import json, os, sys, time

for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    time.sleep(0.01)
    print(json.dumps({"ok": {"item": task["args"], "consumer": os.getpid()}}), flush=True)
