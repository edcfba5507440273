"""mmdetection's golden detectors: small ones of its published configs, with weights from integers.

The file beside this one holds what mmdetection 3.3 finds (``dev/write_golden_mmdetection.py``), and
the names and shapes of its tensors.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from golden import inputs
from torch import Tensor

from backbones.convnext import Size

FILE = inputs.FOLDER / "mmdetection.json"
SIZE = Size((8, 16, 24, 32), (1, 1, 2, 1), 1)
GAINS = {"rpn_cls": 3.0, "rpn_reg": 0.3, "fc_cls": 2.0, "fc_reg": 1.0, "conv_logits": 3.0}


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A detector's weights by mmdetection's names, as :func:`golden.inputs.weights` makes them."""
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
            continue
        values = inputs.uniform(name, tuple(shape))
        if name.endswith(("running_var", ".gamma")) or (
            len(shape) == 1 and name.endswith(".weight")
        ):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.1 * values
        else:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            values = values * gain * np.sqrt(3 / np.prod(shape[1:]))
        if name.endswith("fc_cls.weight"):  # rows that sum to 0, or one class wins everywhere
            half = shape[1] // 2
            values[:, half:] = -values[:, :half]
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def samples() -> list[dict[str, Any]]:
    """Images with the sizes that their detections are scaled to."""
    found = []
    for index, (size, (height, width)) in enumerate(inputs.IMAGES):
        found.append(inputs.sample(f"golden {index}", size) | {"height": height, "width": width})
    return found


def read() -> dict[str, Any]:
    """What mmdetection found, by detector."""
    return json.loads(FILE.read_text(encoding="utf-8"))
