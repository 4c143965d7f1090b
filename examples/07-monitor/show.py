"""Reads `worker ls --json`; prints what each child uses."""
import json, sys

for line in sys.stdin:
    for child in json.loads(line).get("children", []):
        cpu, rss, progress = child["cpu_percent"], child["rss_bytes"] >> 20, child.get("progress")
        done = "" if progress is None else f"{progress:4.0%}  {child['note']}"
        print(f"{child['name']:<12} {child['state']:<8} {cpu:5.1f} % CPU {rss:5} MiB  {done}")
