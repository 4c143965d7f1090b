"""A handler that misbehaves as its task asks; otherwise it answers with its arguments and its process id."""

import json
import os
import signal
import subprocess
import sys
import time


def say(answer):
    print(json.dumps(answer), flush=True)


def log(text):
    print(text, file=sys.stderr, flush=True)


def main():
    if "hang" in sys.argv:
        time.sleep(3600)
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: log("asked to end, and staying"))
    if "ready" in sys.argv:
        say({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        if task.get("shutdown"):
            log("shutting down")
            return
        args = task["args"]
        how = args.get("how") if isinstance(args, dict) else None
        if how == "segfault":
            log("about to crash")
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        elif how == "exit":
            log("leaving with 3")
            os._exit(3)
        elif how == "memory":
            held = bytearray(512 << 20)
            held[:: 4096] = b"x" * len(held[:: 4096])
            time.sleep(60)
        elif how == "garbage":
            print('{"ok": this is no answer}', flush=True)
            continue
        elif how == "long_line":
            sys.stdout.write('{"ok": "' + "x" * (100 << 20))
            sys.stdout.write("\n")
            sys.stdout.flush()
            continue
        elif how == "close":
            os.close(1)
            time.sleep(60)
        elif how == "hang":
            time.sleep(3600)
        elif how == "fork":
            # A grandchild in a session of its own that outlives its parent.
            grandchild = subprocess.Popen(["sleep", "4242"], start_new_session=True, stdin=subprocess.DEVNULL)
            say({"ok": grandchild.pid})
            continue
        elif how == "pid":
            say({"ok": os.getpid()})
            continue
        elif how == "leave":
            say({"ok": os.getpid()})
            return
        elif how == "raise":
            say({"error": {"type": "ValueError", "message": "no", "traceback": "line 1"}, "retry": False})
            continue
        elif how == "progress":
            say({"progress": 0.4, "note": "nearly half"})
            time.sleep(args["seconds"])
        elif how == "env":
            say({"ok": {name: value for name, value in os.environ.items() if "MILLPOND" in name or "NATS" in name}})
            continue
        elif how == "log":
            for n in range(args["lines"]):
                log(f"line {n}")
        say({"ok": args})


main()
