"""A stream handler: computes for as many seconds as its first argument says, and answers with its arguments."""

import json
import sys
import time

SECONDS = float(sys.argv[1])

for line in sys.stdin:
    task = json.loads(line)
    if "shutdown" in task:
        break
    end = time.perf_counter() + SECONDS
    while SECONDS and time.perf_counter() < end:
        pass
    sys.stdout.write('{"ok":%d}\n' % task["args"])
    sys.stdout.flush()
