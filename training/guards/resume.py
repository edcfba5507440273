"""Which settings a resumed run may change; the rule is the same for every training.

Settings that affect what is learnt may not change, because the record of the run would show a value
that not every step used. Other settings may change, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from backbones.errors import InputError
from training.config_files import flatten

logger = logging.getLogger(__name__)

# Keys of a config that may not change: weights and optimizer state of the run would not fit.
FIXED_KEYS = (
    "MODEL.", "ENGINE", "SEED", "SOLVER.OPTIMIZER", "SOLVER.LAYER_DECAY", "SOLVER.EMA.ENABLED",
)  # fmt: skip
FREE_ENDINGS = (".WEIGHTS", ".DEVICE", "_TEST")


def is_free_key(name: str) -> bool:
    """Whether a resumed run may change this key of its config."""
    return not name.startswith(FIXED_KEYS) or name.endswith(FREE_ENDINGS)


def compare_settings(
    earlier: Mapping[str, Any], now: Mapping[str, Any], is_free: Callable[[str], bool]
) -> list[str]:
    """Compare a resumed run's settings with those that it began with.

    Args:
        earlier, now: settings by name, as nested mappings; ``a.b`` is ``b`` within ``a``. Settings
            that only one of the two has are ignored.
        is_free: whether a setting may change.

    Returns:
        A message for each setting that has changed and may.

    Raises:
        InputError: for settings that have changed and may not.
    """
    old, new = dict(flatten(earlier)), dict(flatten(now))
    changed = {
        name: f"{name} was {value!r}, is {new[name]!r}"
        for name, value in sorted(old.items())
        if name in new and new[name] != value
    }
    # None on one side, several settings on the other
    for before, after, said in ((old, new, "was {}, is {}"), (new, old, "is {}, was {}")):
        for name in sorted(before.keys() - after.keys()):
            if parts := {k: v for k, v in after.items() if k.startswith(f"{name}.")}:
                changed[name] = f"{name} {said.format(before[name], parts)}"
    if fixed := [line for name, line in changed.items() if not is_free(name)]:
        raise InputError(
            "\n  ".join(["--resume cannot continue a run with other settings:", *fixed])
            + "\nGive the settings of the run, or choose another output folder"
        )
    return list(changed.values())


def say_changes(changes: list[str]) -> None:
    for change in changes:
        logger.warning("changed since the run began: %s", change)
