"""The progress bar, with the remaining time, of every task that may take long.

Bars go to stderr. There is none if stderr is not a terminal, in a process that is not the main
one, or for a task that ends within half a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from training.cli import is_main_process

DELAY = 0.5  # seconds


def progress(
    items: Iterable[Any] | None = None,
    text: str | None = None,
    total: float | None = None,
    unit: str = "it",
    **options: Any,
) -> tqdm:
    """Iterate over ``items`` with a bar; without items, make one to ``update`` and close.

    Args:
        text: what is done: "checking images".
        total: how many items there are, where they do not tell.
        unit: of one item: "image"; "B" for bytes, which are shown as MB.
        options: more of tqdm's; by default a bar is removed at its end.
    """
    defaults = {"delay": DELAY, "leave": False, "dynamic_ncols": True, "unit_scale": unit == "B"}
    hidden = not (is_main_process() and sys.stderr.isatty())
    return tqdm(items, text, total, unit=unit, disable=hidden, **(defaults | options))
