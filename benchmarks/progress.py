"""A progress bar in a few lines: redrawn in a terminal, one line every tenth of the way in a log."""

import sys
import time


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    def __init__(self, total: int, label: str, stream=None, now=time.monotonic):
        self.total, self.label = total, label
        self.stream = sys.stderr if stream is None else stream
        self.now, self.start = now, now()
        self.terminal = self.stream.isatty()
        self.first: int | None = None  # how much was done before we started, when resuming
        self.tenth = -1

    def update(self, done: int, text: str = "") -> None:
        if self.first is None:
            self.first = max(done - 1, 0)
        elapsed = self.now() - self.start
        left = elapsed / max(done - self.first, 1) * (self.total - done)
        filled = 24 * done // max(self.total, 1)
        line = (
            f"{self.label} [{'#' * filled}{'.' * (24 - filled)}] {done}/{self.total} "
            f"{clock(elapsed)} (left {clock(left)}) {text}"
        )
        if self.terminal:
            self.stream.write(f"\r\x1b[K{line[:118]}")
        elif 10 * done // max(self.total, 1) != self.tenth:
            self.tenth = 10 * done // max(self.total, 1)
            self.stream.write(line.rstrip() + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Free the line for other output; the next update draws the bar again."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
