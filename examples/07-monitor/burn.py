"""Holds memory, computes, and tells how far it is."""
import json, sys, time


def burn(seconds, mib):
    block, start = b"x" * (mib << 20), time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        print(json.dumps({"progress": passed / seconds, "note": f"{mib} MiB held"}), flush=True)
        sum(range(1_000_000))
    return len(block)


for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    print(json.dumps({"ok": burn(**task["args"])}), flush=True)
