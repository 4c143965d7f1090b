"""The parent's end: sends a number, gets it back smaller, sends that, down to 0."""
import json, os, subprocess

millpond = os.environ.get("MILLPOND", "millpond")
pipe = subprocess.Popen(
    [millpond, "call", "child", '"parent"', "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)


def send(x):
    print(json.dumps(x), file=pipe.stdin, flush=True)


def recv():
    return json.loads(pipe.stdout.readline())


print("child:", recv())
n = 5
while n > 0:
    send(n)
    n = recv()
    print("child:", n)
pipe.stdin.close()
print("child:", recv())
print("exit code", pipe.wait())
