"""A handler that logs two lines for each attempt, fails as long as its task asks, and answers with its trace context."""

import json
import sys


def main():
    for line in sys.stdin:
        task = json.loads(line)
        if task.get("shutdown"):
            return
        args = task.get("args")
        if "file" in task:
            with open(task["file"], "rb") as file:
                args = json.load(file)
        for n in (1, 2):
            print(json.dumps({"level": "WARNING", "message": f"line {n}"}), file=sys.stderr, flush=True)
        if args.get("fatal"):
            answer = {"error": {"type": "ValueError", "message": "no", "traceback": "line 1"}, "retry": False}
        elif task["attempt"] < args.get("until", 1):
            answer = {"error": "not yet"}
        else:
            answer = {"ok": {"traceparent": task["traceparent"]}}
        print(json.dumps(answer), flush=True)


main()
