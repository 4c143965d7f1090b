"""Says which process it is, and whom it greets."""
import json, os, sys, time

for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    time.sleep(0.3)
    answer = {"child": os.environ["MILLPOND_CHILD"], "pid": os.getpid(), "hello": task["args"]}
    print(json.dumps({"ok": answer}), flush=True)
