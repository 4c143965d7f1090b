"""The function of the original, and eight lines around it."""
import json, sys


def is_prime(n):
    return n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1))


for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    print(json.dumps({"ok": is_prime(task["args"])}), flush=True)
