"""Raises on a negative value; whatever is raised is the answer."""
import json, sys, traceback


def square_root(value):
    print(f"the root of {value} is wanted", file=sys.stderr)
    if value < 0:
        raise ValueError(f"negative value: {value}")
    return value**0.5


for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    try:
        answer = {"ok": square_root(task["args"])}
    except Exception as e:
        answer = {"error": {"type": type(e).__name__, "message": str(e), "traceback": traceback.format_exc()}}
    print(json.dumps(answer), flush=True)
