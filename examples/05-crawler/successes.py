"""Reads `worker ls --json`; prints the pages that each worker got, once there are as many as the argument says."""
import json, sys

workers = [json.loads(line) for line in sys.stdin]
counts = {w["name"]: w.get("by_kind", {}).get("fetch", {}).get("done", 0) for w in workers}
if sum(counts.values()) < int(sys.argv[1]):
    sys.exit(1)
for name, count in sorted(counts.items()):
    print(f"{name} got {count}")
