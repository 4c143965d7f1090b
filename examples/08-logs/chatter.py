"""Writes numbered log lines: plain ones, and JSON with levels as the common loggers write them."""
import json, sys, time

LEVELS = ["info", "warning", "error"]

for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    for n in range(task["args"]):
        text = f"line {n}"
        if n % 2:
            text = json.dumps({"level": LEVELS[n % 3], "message": text})
        print(text, file=sys.stderr)
        if n % 500 == 0:
            time.sleep(0.1)
    print(json.dumps({"ok": task["args"]}), flush=True)
