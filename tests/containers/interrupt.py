#!/usr/bin/env python3
"""Presses Ctrl-C once in a terminal of its own, for the first process of a container.

    interrupt.py docker compose run --name NAME …     ends with 0 when the command ends soon after, and says what goes on
    interrupt.py --listens NAME                       ends with 0 when the container's first process handles both signals
"""
import os
import pty
import select
import signal
import subprocess
import sys
import time

ENDS_WITHIN = 3
STARTS_WITHIN = 30


def listens(name):
    """Whether the container's first process has handlers for SIGINT and SIGTERM."""
    found = subprocess.run(["docker", "inspect", "--format", "{{.State.Pid}}", name], capture_output=True, text=True)
    pid = found.stdout.strip()
    if found.returncode != 0 or pid in ("", "0"):
        return False
    with open(f"/proc/{pid}/status") as status:
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt:"))
    return all(caught >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


def read(terminal, within):
    """What is printed until then; none at its end."""
    ready, _, _ = select.select([terminal], [], [], within)
    try:
        return os.read(terminal, 4096).decode(errors="replace") if ready else ""
    except OSError:
        return None


def main(command):
    name = command[command.index("--name") + 1]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    printed, began = "", time.monotonic()
    while not listens(name):
        printed += read(terminal, 0.1) or ""
        if time.monotonic() - began > STARTS_WITHIN:
            sys.exit(f"no handlers for signals: {printed}")
    pressed = time.monotonic()
    os.write(terminal, b"\x03")
    while (more := read(terminal, ENDS_WITHIN)) is not None:
        printed += more
        if time.monotonic() - pressed > ENDS_WITHIN:
            os.kill(pid, signal.SIGKILL)
            sys.exit(f"it goes on: {printed}")
    os.waitpid(pid, 0)
    if "interrupted" not in printed or "job wait nothing" not in printed:
        sys.exit(f"it does not say what goes on: {printed}")


if sys.argv[1] == "--listens":
    sys.exit(0 if listens(sys.argv[2]) else 1)
main(sys.argv[1:])
