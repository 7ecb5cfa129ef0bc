"""Watches a belt: reads what passes the cameras, counts it, and reports it to the agent of the box.

What may be set, as variables of the environment:

| variable         | default    | what                                                                          |
|------------------|------------|-------------------------------------------------------------------------------|
| BELT_CAMERAS     | 4          | cameras                                                                       |
| BELT_RATE        | 2          | frames a second of each                                                       |
| BELT_QUEUE       | 16         | frames that wait at most; a camera that finds it full drops its frame         |
| BELT_STREAM      | scans      | stream of the agent that takes a record for each label                        |
| BELT_PROVIDERS   | CUDA,CPU   | what the models may run on, best first; TensorRT, too, which takes minutes    |
| BELT_THREADS     | 1          | threads of the models on the CPU; 0: all cores                                |
| BELT_DELAY_MS    | 0          | milliseconds more for each frame: a model that is too slow, for trying gates  |
| BELT_PORT        | 8080       | of /healthz                                                                   |
| BELT_ASSETS      | /app/assets| folder with the models and pictures                                           |

A record: {"camera":"cam-1","frame":31,"text":"Region-based segmentation","confidence":0.98,"box":[26,137,270,160]}.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path

from .belt import WIDTH, Camera, Frame, load, view
from .doors import Agent, Rate, serve_health
from .reader import Label, Reader

log = logging.getLogger("belt_watch")

# A label counts once it is whole: so many pixels from the picture's edges; and once among so many of its camera.
EDGE, REMEMBERED = 6, 32
# Seconds between two reports, and without a frame until /healthz is red.
REPORT, SILENT = 1.0, 10.0


class Watch:
    """One loop that reads frames and counts, and what is known of it."""

    def __init__(self, reader: Reader, agent: Agent, cameras: list[Camera], frames: queue.Queue[Frame]) -> None:
        self._reader, self._agent, self._cameras, self._frames = reader, agent, cameras, frames
        self._delay = number("BELT_DELAY_MS", 0) / 1000
        self._seen = {camera.name: deque[str](maxlen=REMEMBERED) for camera in cameras}
        self._rate = Rate()
        self._latency = 0.0
        self._last = time.monotonic()
        self._frames_read = 0
        self._labels = 0

    def run(self, stop: threading.Event) -> None:
        """Reads frames until `stop`."""
        while not stop.is_set():
            try:
                frame = self._frames.get(timeout=0.2)
            except queue.Empty:
                continue
            began = time.monotonic()
            labels = self._reader.read(frame.picture)
            stop.wait(self._delay)
            self._last = time.monotonic()
            self._latency += 0.2 * (self._last - began - self._latency)
            self._rate.count(self._last)
            self._frames_read += 1
            for label in labels:
                self._count(frame, label)

    def _count(self, frame: Frame, label: Label) -> None:
        left, _, right, _ = label.box
        seen = self._seen[frame.camera]
        if left < EDGE or right > WIDTH - EDGE or label.text in seen:
            return
        seen.append(label.text)
        self._labels += 1
        found = {"text": label.text, "confidence": round(label.confidence, 3), "box": label.box}
        self._agent.hand_in({"camera": frame.camera, "frame": frame.number, **found})

    def report(self, stop: threading.Event) -> None:
        """Tells the agent the numbers each second until `stop`, and the log each minute."""
        turn = 0
        while not stop.wait(REPORT):
            values = self.values()
            self._agent.report(values)
            if turn % 60 == 4:
                log.info("%s", " ".join(f"{name}={value:g}" for name, value in values.items()))
            turn += 1

    def values(self) -> dict[str, float]:
        """What it reports."""
        now = time.monotonic()
        return {
            "frames_per_second": round(self._rate.per_second(now), 3),
            "queue_length": self._frames.qsize(),
            "inference_latency_seconds": round(self._latency, 4),
            "cameras": len(self._cameras),
            "cameras_lost": sum(camera.is_lost(now) for camera in self._cameras),
            "frames_dropped": sum(camera.dropped for camera in self._cameras),
            "labels": self._labels,
        }

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether frames are read, and the numbers."""
        good = self._frames_read > 0 and time.monotonic() - self._last < SILENT + 2 * self._delay
        state = {"status": "ok" if good else "no frames", "provider": self._reader.provider, "frames": self._frames_read}
        return good, {**state, **self.values()}


def number(name: str, default: float) -> float:
    """A variable of the environment that is a number and not negative."""
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        sys.exit(f"{name} is {text!r}: write a number that is not negative, such as {default:g}")
    return value


def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())

    # Probes are answered before the models are there: with 503.
    state = lambda: (False, {"status": "loading the models"})  # noqa: E731
    server = serve_health(int(number("BELT_PORT", 8080)), lambda: state())
    assets = Path(os.environ.get("BELT_ASSETS", "/app/assets"))
    wanted, threads = os.environ.get("BELT_PROVIDERS", "CUDA,CPU"), int(number("BELT_THREADS", 1))
    reader = Reader(assets / "models", wanted, threads)
    parcels = load(assets / "pictures")
    log.info("the models run on %s", reader.provider)
    began = time.monotonic()
    reader.read(view(parcels, 9))  # the first reading takes longer, above all on a GPU
    log.info("warm after %.2f s", time.monotonic() - began)

    frames: queue.Queue[Frame] = queue.Queue(max(int(number("BELT_QUEUE", 16)), 1))
    period = 1 / max(number("BELT_RATE", 2), 0.01)
    count = max(int(number("BELT_CAMERAS", 4)), 1)
    cameras = [Camera(f"cam-{i + 1}", period, parcels, frames, first=i * 13) for i in range(count)]
    agent = Agent(os.environ)
    if not agent.is_there:
        log.info("no agent is named (CROSSDOCK_STREAMS_SOCKET, CROSSDOCK_STREAMS_URL): records stay here")
    watch = Watch(reader, agent, cameras, frames)
    state = watch.health
    stream = os.environ.get("BELT_STREAM", "scans")
    delivery = threading.Thread(target=agent.deliver, args=(stream, stop), name="delivery")
    delivery.start()
    threading.Thread(target=watch.report, args=(stop,), name="report", daemon=True).start()
    for camera in cameras:
        camera.start(stop)
    watch.run(stop)
    delivery.join()
    server.shutdown()
    log.info("ended: %d records taken by the agent, %d dropped", agent.taken, agent.dropped)


if __name__ == "__main__":
    main()
