"""Answers with the size and SHA-256 of its arguments, whatever they are: `once` from standard input, `stream` from the
line or the file that it names. In JSON arguments `until` fails before that attempt, `wait_for` waits for a file, `answer`
answers with so many bytes. On the command line `first-hang` keeps the worker w1 from ever answering."""

import hashlib
import json
import os
import sys
import time


def digest(source):
    sha, size = hashlib.sha256(), 0
    while piece := source.read(1 << 20):
        sha.update(piece)
        size += len(piece)
    return {"size": size, "sha256": sha.hexdigest()}


def stream():
    for line in sys.stdin:
        task = json.loads(line)
        if task.get("shutdown"):
            return
        args = task.get("args")
        if "file" in task:
            with open(task["file"], "rb") as file:
                answer = {"ok": {"from": "file", **digest(file)}}
        elif isinstance(args, dict) and task["attempt"] < args.get("until", 1):
            answer = {"error": {"type": "too_early", "message": "not yet"}}
        elif "wait_for" in args:
            while not os.path.exists(args["wait_for"]):
                time.sleep(0.05)
            answer = {"ok": "waited"}
        elif "answer" in args:
            answer = {"ok": "x" * args["answer"]}
        else:
            answer = {"ok": {"from": "args", "size": len(args["pad"])}}
        print(json.dumps(answer), flush=True)


def once():
    answer = digest(sys.stdin.buffer)
    if "first-hang" in sys.argv and os.environ["MILLPOND_WORKER"] == "w1":
        time.sleep(3600)
    print(json.dumps(answer))


stream() if "stream" in sys.argv else once()
