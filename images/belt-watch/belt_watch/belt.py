"""Cameras over a belt: each shows real pictures that pass from right to left, as parcels do, at a rate of its own.

Cameras are threads that put frames into one queue with a bound. Who finds it full drops its frame, and it is counted:
a camera does not wait.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

# What a camera sees of the belt, in pixels, and how far the belt moves from one frame to the next.
WIDTH, HEIGHT, STEP = 480, 320, 48
BELT = (88, 90, 92)
# A page passes line by line, cut out of it from row to row, a photograph as a whole.
PAGE = "page.png"
LINES = ((4, 42), (44, 70), (62, 88), (79, 106), (96, 124), (112, 143), (160, 191))
PHOTOGRAPHS = ("coins.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "astronaut.png", "clock_motion.png")
# A camera is lost when it showed nothing for so many of its periods.
LOST_AFTER = 5


@dataclass(frozen=True)
class Frame:
    """What a camera saw: which camera, its how many-th frame, when (monotonic seconds), and the picture."""

    camera: str
    number: int
    at: float
    picture: Image.Image


def load(folder: Path) -> list[Image.Image]:
    """The pictures that pass: lines of the page and photographs by turns, as large as they are to be seen."""
    page = Image.open(folder / PAGE).convert("RGB")
    wide = WIDTH * 9 // 10
    strips = [page.crop((0, top, page.width, bottom)) for top, bottom in LINES]
    strips = [strip.resize((wide, strip.height * wide // strip.width), Image.Resampling.LANCZOS) for strip in strips]
    photographs = []
    for name in PHOTOGRAPHS:
        photograph = Image.open(folder / name).convert("RGB")
        photograph.thumbnail((WIDTH * 3 // 4, HEIGHT * 3 // 4))
        photographs.append(photograph)
    most = max(len(strips), len(photographs))
    return [kind[i % len(kind)] for i in range(most) for kind in (strips, photographs)]


def view(parcels: list[Image.Image], number: int) -> Image.Image:
    """The `number`-th frame: the belt, with the parcel that passes then."""
    at = number * STEP
    turn = sum(WIDTH + parcel.width for parcel in parcels)
    at %= turn
    for parcel in parcels:
        if at < WIDTH + parcel.width:
            picture = Image.new("RGB", (WIDTH, HEIGHT), BELT)
            picture.paste(parcel, (WIDTH - at, (HEIGHT - parcel.height) // 2))
            return picture
        at -= WIDTH + parcel.width
    raise AssertionError("a place on the belt is within one turn")


@dataclass
class Camera:
    """A camera: a thread that feeds frames until it is told to stop."""

    name: str
    period: float
    parcels: list[Image.Image]
    frames: queue.Queue[Frame]
    first: int = 0
    dropped: int = field(default=0, init=False)
    last: float = field(default_factory=time.monotonic, init=False)

    def start(self, stop: threading.Event) -> threading.Thread:
        """Starts to feed, in a thread that ends after `stop`."""
        thread = threading.Thread(target=self._feed, args=(stop,), name=self.name, daemon=True)
        thread.start()
        return thread

    def is_lost(self, now: float) -> bool:
        """Whether nothing came from it for a while."""
        return now - self.last > max(LOST_AFTER * self.period, 1.0)

    def _feed(self, stop: threading.Event) -> None:
        due = time.monotonic()
        number = self.first
        while not stop.wait(max(due - time.monotonic(), 0)):
            due = max(due + self.period, time.monotonic())  # what was missed is not made up for
            picture = view(self.parcels, number)
            self.last = time.monotonic()
            try:
                self.frames.put_nowait(Frame(self.name, number, self.last, picture))
            except queue.Full:
                self.dropped += 1
            number += 1
