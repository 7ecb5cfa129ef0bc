"""Runs a program at a terminal of its own. Arguments: what to wait for and type, as JSON; the program; its arguments."""
import json
import os
import pty
import select
import sys
import time

PATIENCE_S = 60

talk = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])

seen, fresh, deadline = b"", b"", time.monotonic() + PATIENCE_S


def read():
    """What came, or nothing once the program has ended."""
    global seen, fresh
    ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
    if not ready:
        sys.exit(f"nothing came for {PATIENCE_S} s after: {seen.decode(errors='replace')}")
    try:
        came = os.read(terminal, 4096)
    except OSError:  # the other end is closed
        came = b""
    seen, fresh = seen + came, fresh + came
    return came


for awaited, typed in talk:
    while awaited.encode() not in fresh:
        if not read():
            sys.exit(f"it ended before it asked {awaited!r}: {seen.decode(errors='replace')}")
    fresh = fresh.split(awaited.encode(), 1)[1]
    os.write(terminal, typed.encode() + b"\n")
while read():
    pass
print(seen.decode(errors="replace"))
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
