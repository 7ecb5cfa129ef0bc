"""The ways out: records and numbers to the agent of the box, and `/healthz` for whoever probes.

The agent's answer means that the records are on its disk. Until then they wait here, within a bound; what is over it
is dropped, the oldest first, and counted. Where there is no agent the application goes on by itself.
"""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

# Records that wait for the agent, and those of one request.
MOST_WAITING, MOST_AT_ONCE = 10_000, 500
# Seconds for one request, and between two attempts.
TIMEOUT, RETRY = 5.0, 1.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


class Agent:
    """The agent's local door, at its Unix socket or its address."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Finds it as the agent names it to its workloads."""
        self._socket = environment.get("CROSSDOCK_STREAMS_SOCKET")
        self._url = environment.get("CROSSDOCK_STREAMS_URL")
        self._app = environment.get("CROSSDOCK_APP", "belt-watch")
        self._digest = environment.get("CROSSDOCK_DIGEST", "")
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._told: str | None = None
        self.taken = 0
        self.dropped = 0

    @property
    def is_there(self) -> bool:
        """Whether an agent was named at all."""
        return bool(self._socket or self._url)

    def hand_in(self, record: dict[str, object]) -> None:
        """Puts a record where the agent will get it from; does not wait."""
        if not self.is_there:
            return
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode())
            self._changed.notify()

    def deliver(self, stream: str, stop: threading.Event) -> None:
        """Hands records in until `stop`, and then what still waits, once."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or stop.is_set(), timeout=RETRY)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
            if batch:
                body = b"\n".join(batch)
                if self._request("POST", f"/v1/streams/{stream}", body, "application/x-ndjson"):
                    self.taken += len(batch)
                elif stop.is_set():
                    self.dropped += len(batch)
                else:
                    with self._changed:
                        self._waiting.extendleft(reversed(batch))
                    stop.wait(RETRY)
            elif stop.is_set():
                return

    def report(self, values: Mapping[str, float]) -> None:
        """Tells the agent numbers, which gates of rollouts look at. The next ones follow soon: nothing is kept."""
        if self.is_there:
            told = {"app": self._app, "digest": self._digest, "values": dict(values)}
            self._request("PUT", "/v1/metrics", json.dumps(told).encode(), "application/json")

    def _request(self, method: str, path: str, body: bytes, kind: str) -> bool:
        """Whether it was taken. A complaint is logged once, until it is another one."""
        connection = self._connection()
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read(2000).decode(errors="replace").strip()
            if answer.status < 300:
                return True
            self._complain(f"{method} {path}: {answer.status} {text}")
        except (OSError, http.client.HTTPException) as error:
            self._complain(f"{method} {path}: the agent does not answer: {error}")
        finally:
            connection.close()
        return False

    def _connection(self) -> http.client.HTTPConnection:
        if self._socket:
            return _UnixConnection(self._socket)
        at = urlsplit(self._url or "")
        return http.client.HTTPConnection(at.hostname or "127.0.0.1", at.port, timeout=TIMEOUT)

    def _complain(self, problem: str) -> None:
        if problem != self._told:
            self._told = problem
            log.warning("%s", problem)


def serve_health(port: int, state: Callable[[], tuple[bool, dict[str, object]]]) -> http.server.HTTPServer:
    """Answers `GET /healthz` with 200 or 503, and with what `state` says; in a thread of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = TIMEOUT

        def do_GET(self) -> None:
            if self.path != "/healthz":
                self.send_error(404, "there is /healthz alone")
                return
            good, document = state()
            body = json.dumps(document).encode() + b"\n"
            self.send_response(200 if good else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are no news."""

    server = http.server.ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="healthz", daemon=True).start()
    return server


class Rate:
    """How many a second, over the last seconds."""

    def __init__(self, window: float = 5.0) -> None:
        """`window` in seconds."""
        self._window = window
        self._started = time.monotonic()
        self._times: deque[float] = deque()

    def count(self, now: float) -> None:
        """One more, at `now` (monotonic seconds)."""
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """Of the window that ends at `now`; of less while it is not yet full."""
        while self._times and self._times[0] <= now - self._window:
            self._times.popleft()
        return len(self._times) / max(min(self._window, now - self._started), 1e-3)
