"""Reads what is written on a picture: PP-OCR's detector finds lines of text, its recogniser reads them.

Both models come as they are out of the wheel of rapidocr-onnxruntime. Inputs have few different sizes, so that a GPU
keeps what it found out about each of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

DETECTOR = "ch_PP-OCRv4_det_infer.onnx"
RECOGNISER = "ch_PP-OCRv4_rec_infer.onnx"
# A pixel belongs to a line of text above the first, a line is believed above the second, its text above the third.
PIXEL, LINE, TEXT = 0.3, 0.5, 0.7
# The detector marks the core of a line: it is widened by this share of its area over its outline.
WIDEN = 1.6
# Side of the squares in which neighbouring pixels are looked for, in pixels.
CELL = 4
# The recogniser's height, the step of its width, and its bounds: a line that is longer is squeezed.
HEIGHT, STEP, WIDEST = 48, 160, 960
# Lines of one picture that are read.
MOST_LINES = 16


@dataclass(frozen=True)
class Label:
    """A line of text: what it says, how sure the model is (0 to 1), and left, top, right, bottom in pixels."""

    text: str
    confidence: float
    box: tuple[int, int, int, int]


def providers(wanted: str) -> list[str]:
    """The execution providers to try, best first: those of `wanted` (such as `CUDA,CPU`) that this runtime has."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # NVIDIA's libraries lie in wheels beside this one
    named = [f"{name.strip()}ExecutionProvider" for name in wanted.split(",")]
    return [name for name in named if name in onnxruntime.get_available_providers()] or ["CPUExecutionProvider"]


class Reader:
    """Both models, loaded. `provider` is what they really run on: a GPU that is not there is no error."""

    def __init__(self, models: Path, wanted: str = "CUDA,CPU", threads: int = 1) -> None:
        """Loads the models of a folder. `threads` is for the CPU alone; 0 takes all of its cores."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it falls back from is said once, by whoever asks for `provider`
        # Spinning threads would take the cores from whatever else the box runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chosen = providers(wanted)
        self._detector, self._recogniser = (
            onnxruntime.InferenceSession(models / name, options, providers=chosen) for name in (DETECTOR, RECOGNISER)
        )
        self.provider: str = self._detector.get_providers()[0]
        characters = self._recogniser.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._alphabet = ["", *characters, " "]  # the first stands for: nothing new here

    def read(self, picture: Image.Image) -> list[Label]:
        """The lines of text on a picture in RGB whose sides are multiples of 32."""
        found = self._find(picture)
        if not found:
            return []
        labels = zip(self._recognise([picture.crop(box) for box in found]), found, strict=True)
        return [Label(text, confidence, box) for (text, confidence), box in labels if text and confidence > TEXT]

    def _find(self, picture: Image.Image) -> list[tuple[int, int, int, int]]:
        name = self._detector.get_inputs()[0].name
        probability = self._detector.run(None, {name: _normal(picture)[None]})[0][0, 0]
        return boxes(probability)

    def _recognise(self, lines: list[Image.Image]) -> list[tuple[str, float]]:
        widths = [min(max(round(line.width * HEIGHT / line.height), 1), WIDEST) for line in lines]
        widest = -(-max(widths) // STEP) * STEP
        batch = np.zeros((len(lines), 3, HEIGHT, widest), np.float32)
        for row, line, width in zip(batch, lines, widths, strict=True):
            row[:, :, :width] = _normal(line.resize((width, HEIGHT), Image.Resampling.BILINEAR))
        name = self._recogniser.get_inputs()[0].name
        return [self._text(row) for row in self._recogniser.run(None, {name: batch})[0]]

    def _text(self, row: np.ndarray) -> tuple[str, float]:
        """Of the likeliest character at each place: the same one twice in a row is one, as CTC has it."""
        best, sure = row.argmax(axis=1), row.max(axis=1)
        kept = (best != 0) & np.insert(best[1:] != best[:-1], 0, True)
        text = "".join(self._alphabet[i] for i in best[kept]).strip()
        return text, float(sure[kept].mean()) if text else 0.0


def _normal(picture: Image.Image) -> np.ndarray:
    """Blue, green, red planes from -1 to 1."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1]
    return (pixels / 127.5 - 1.0).transpose(2, 0, 1)


def boxes(probability: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Where lines of text are: patches of pixels that hang together, widened, from top to bottom."""
    height, width = probability.shape
    cells = probability.reshape(height // CELL, CELL, width // CELL, CELL).max(axis=(1, 3)) > PIXEL
    found = []
    for top, left in zip(*np.nonzero(cells), strict=True):
        if not cells[top, left]:
            continue  # of a patch before
        rows, columns = _patch(cells, int(top), int(left))
        box = (min(columns) * CELL, min(rows) * CELL, (max(columns) + 1) * CELL, (max(rows) + 1) * CELL)
        core = probability[box[1] : box[3], box[0] : box[2]]
        core = core[core > PIXEL]
        if core.size and core.mean() > LINE:
            wide, high = box[2] - box[0], box[3] - box[1]
            more = round(wide * high * WIDEN / (2 * (wide + high)))
            found.append(
                (max(box[0] - more, 0), max(box[1] - more, 0), min(box[2] + more, width), min(box[3] + more, height))
            )
    return found[:MOST_LINES]


def _patch(cells: np.ndarray, row: int, column: int) -> tuple[list[int], list[int]]:
    """Rows and columns of the cells that hang together with one; they are cleared."""
    rows, columns, near = [], [], deque([(row, column)])
    cells[row, column] = False
    while near:
        row, column = near.popleft()
        rows.append(row)
        columns.append(column)
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= y < cells.shape[0] and 0 <= x < cells.shape[1] and cells[y, x]:
                cells[y, x] = False
                near.append((y, x))
    return rows, columns
