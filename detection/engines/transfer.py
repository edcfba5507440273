"""From a detector of some classes to one of others: weights of a class are kept by its name.

Everything is in detectron2's names and layout (the background is the classifier's last row), so
that both engines start from equal weights. Rows of new classes are drawn here, from the seed alone
and as detectron2 initialises these layers.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from backbones.errors import InputError, counted

logger = logging.getLogger(__name__)

# name -> (rows per class, rows of the background behind them, standard deviation of new weights)
PREDICTORS = {
    re.compile(r"roi_heads\.box_predictor\.(\d\.)?cls_score\."): (1, 1, 0.01),
    re.compile(r"roi_heads\.box_predictor\.(\d\.)?bbox_pred\."): (4, 0, 0.001),
    re.compile(r"roi_heads\.mask_head\.(\d\.)?predictor\."): (1, 0, 0.001),
}
_COCO_91 = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = [name for name in _COCO_91 if name not in ("__background__", "N/A")]


@dataclass(frozen=True)
class Classes:
    """The classes that a detector is to have.

    Attributes:
        aliases: name here -> name in the file, of classes that are called otherwise there.
        seed: of the rows of classes that the file does not have.
    """

    names: Sequence[str]
    aliases: Mapping[str, str]
    seed: int


def parse_aliases(pairs: Sequence[str]) -> dict[str, str]:
    """``["hazelnut=nut"]`` (``MODEL.CLASS_ALIASES``) -> name here -> name in the file.

    Raises:
        InputError: for an entry without ``=``, or a name that stands twice.
    """
    parts = [pair.partition("=") for pair in pairs]
    problems = [f"{pair!r} is not HERE=THERE" for pair in pairs if "=" not in pair]
    names = [name.strip() for name, _, _ in parts]
    problems += [f"{name!r} stands {n} times" for name, n in Counter(names).items() if n > 1]
    if problems:
        raise InputError(f"MODEL.CLASS_ALIASES: {'; '.join(problems)}")
    return {here.strip(): there.strip() for here, _, there in parts}


def names_in(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[str] | None:
    """A detector's classes by its metadata, or COCO's if it has 80; None if unknown."""
    rows = next((len(t) for n, t in tensors.items() if re.search(r"cls_score\.bias$", n)), 0)
    if "class_names" in metadata:
        names = json.loads(metadata["class_names"])
        return names if len(names) == rows - 1 else None
    if rows - 1 == len(COCO):
        logger.info("a detector of 80 classes that does not name them: they are taken for COCO's")
        return list(COCO)
    return None


def select_classes(
    tensors: Mapping[str, Tensor], theirs: Sequence[str] | None, classes: Classes, source: str
) -> dict[str, Tensor]:
    """A detector's tensors with the rows for ``classes``.

    Args:
        tensors: in detectron2's names.
        theirs: the names of its classes, None if unknown.
        source: the file, for messages.

    Raises:
        InputError: if classes are matched twice, an alias names no class, or the file's classes
            are others in number and have no known names.
    """
    rows = next((len(t) for n, t in tensors.items() if re.search(r"cls_score\.bias$", n)), 0)
    if theirs is None:
        if rows in (0, len(classes.names) + 1):
            return dict(tensors)
        raise InputError(
            f"{source} is a detector of {counted(rows - 1, 'class')} that does not name them, and "
            f"the data have {len(classes.names)}: its rows cannot be matched. Convert the file "
            "that its training wrote, which names them, or begin with its encoder "
            "(MODEL.CONVNEXT.WEIGHTS)"
        )
    found = _matches(theirs, classes, source)
    if list(theirs) == list(classes.names) and found == list(range(len(theirs))):
        return dict(tensors)
    kept = [name for name, row in zip(classes.names, found, strict=True) if row is not None]
    new = [name for name in classes.names if name not in kept]
    logger.info(
        "%d of %d classes kept: %s, %d new: %s",
        *(len(kept), len(found), ", ".join(kept) or "none", len(new), ", ".join(new) or "none"),
    )
    return {name: _rows_of(name, t, found, rows - 1, classes.seed) for name, t in tensors.items()}


def _matches(theirs: Sequence[str], classes: Classes, source: str) -> list[int | None]:
    """For each class its row in the file, or None."""
    twice = [name for name, n in Counter(theirs).items() if n > 1]
    problems = [f"the file has class {name!r} twice" for name in twice]
    for here, there in classes.aliases.items():
        if here not in classes.names:
            problems.append(f"the data have no class {here!r} (MODEL.CLASS_ALIASES)")
        if there not in theirs:
            problems.append(f"the file has no class {there!r} (MODEL.CLASS_ALIASES)")
    wanted = [classes.aliases.get(name, name) for name in classes.names]
    found = [theirs.index(name) if name in theirs else None for name in wanted]
    for name, times in Counter(name for name in wanted if name in theirs).items():
        if times > 1:
            both = [n for n, w in zip(classes.names, wanted, strict=True) if w == name]
            problems.append(f"class {name!r} of the file is matched by {' and '.join(both)}")
    if problems:
        raise InputError(
            f"{source}: its classes cannot be matched: {'; '.join(problems)}. "
            f"It has {', '.join(theirs)}"
        )
    return found


def _rows_of(
    name: str, tensor: Tensor, found: Sequence[int | None], theirs: int, seed: int
) -> Tensor:
    for pattern, (each, background, std) in PREDICTORS.items():
        if not pattern.match(name) or len(tensor) != each * theirs + background:
            continue  # another tensor, or one for all classes
        parts = []
        for number, row in enumerate(found):
            if row is not None:
                parts.append(tensor[each * row : each * (row + 1)])
                continue
            new = tensor.new_zeros(each, *tensor.shape[1:])
            if name.endswith(".weight"):
                generator = torch.Generator().manual_seed(seed + number)
                new.copy_(std * torch.randn(new.shape, generator=generator))
            parts.append(new)
        return torch.cat([*parts, tensor[each * theirs :]])
    return tensor
