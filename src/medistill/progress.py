"""Progress with time left: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines."""


reading_shown: ContextVar[bool] = ContextVar("reading_shown", default=False)
"""Whether the reading of many files shows its progress; the command line does so, the library where it is set."""


def duration(seconds: float) -> str:
    """Minutes and seconds for people: "1 min 05 s"."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Progress:
    """Counts steps of one piece of work on standard error; silent when ``enabled`` is false.

    Args:
        label: what is being done.
        total: steps in all; work may differ between steps, so steps carry a weight.
        done: steps done in an earlier run.
        enabled: whether anything is shown.
    """

    def __init__(self, label: str, total: float, done: float = 0, enabled: bool = True) -> None:
        self.label, self.total, self.done, self.enabled = label, max(total, 1e-9), done, enabled
        self.initial = done
        self.started = self.spoken = time.monotonic()
        self.bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.bar.add_task(self.label, total=self.total, completed=int(self.done))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.enabled and kind is None:
            self._say(f"{self.label}: done in {duration(time.monotonic() - self.started)}")

    def advance(self, steps: float = 1, detail: str = "") -> None:
        """Count steps; ``detail`` is shown behind the label."""
        self.done += steps
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.update(
                self.bar.task_ids[0],
                total=self.total,
                completed=self.done,
                description=f"{self.label} {detail}".strip(),
            )
            return
        now = time.monotonic()
        if now - self.spoken >= PLAIN_INTERVAL:
            self.spoken = now
            rate = (self.done - self.initial) / (now - self.started)
            left = duration((self.total - self.done) / rate) if rate > 0 else "unknown"
            self._say(f"{self.label}: {self.done / self.total:.0%}, {left} left {detail}".rstrip())

    def note(self, line: str) -> None:
        """Something to know that is there already."""
        if self.enabled and self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        elif self.enabled:
            self._say(line)

    def reach(self, total: float, done: float, detail: str = "") -> None:
        """Say how far a piece of work is whose size shows only once it has begun."""
        self.total = max(total, 1e-9)
        self.advance(done - self.done, detail)

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def say(line: str, enabled: bool = True) -> None:
    """One line of news on standard error."""
    if enabled:
        Progress._say(line)
