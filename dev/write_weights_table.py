"""Write the table of docs/weights.md: every ConvNeXt that timm lists, and what of it is read here.

Each row is found out with a stand-in of the same structure, random weights and few channels; the
tests compare its features and logits with timm's. Nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.key_adapters import FORMATS, Recognised, from_ours, to_ours
from backbones.weights.sources import LICENCE_NAMES, timm_evaluation
from backbones.weights.structure import check_head
from backbones.whole_files import write_text
from images.statistics import IMAGENET
from reporting.tables import with_between
from training.cli import ToolParser, run_tool

PAGE = Path("docs/weights.md")
MARKS = ("<!-- table of timm's -->", "<!-- end of the table -->")
DIMS = (8, 16, 24, 32)
TARGETS = tuple(name for name in FORMATS if name != "fcmae")
EXAMPLES = """examples:
  python dev/write_weights_table.py
  python dev/write_weights_table.py --check   # exit 1 where the page is not what this timm says
"""


@dataclass(frozen=True)
class Row:
    """What of a tag is read."""

    tag: str  # timm's name
    size: str  # ours; "" where it is refused
    encoder: str  # "yes", or why not
    classifier: str  # its rows, or why there is none
    # image size, crop and interpolation of its evaluation, and its statistics if they are not
    # ImageNet's
    seen: str
    licence: str  # timm's word
    formats: tuple[str, ...]  # those that it converts to

    def line(self) -> str:
        every = set(self.formats) == set(TARGETS)
        without = ", ".join(name for name in TARGETS if name not in self.formats)
        formats = "all" if every else f"all but {without}" if self.formats else "none"
        cells = (f"`{self.tag}`", self.size, self.encoder, self.classifier, self.seen, formats)
        return f"| {' | '.join(cells)} | {self.licence} |"


def tags() -> list[str]:
    """Every ConvNeXt of timm's that has weights."""
    return timm.list_models("convnext*", pretrained=True)


def stand_in(tag: str) -> nn.Module:
    """A model of this tag's structure and head, of few channels, with random weights."""
    architecture = tag.partition(".")[0]
    torch.manual_seed(0)
    options: dict[str, Any] = {"head_hidden_size": 12} if architecture.endswith("_mlp") else {}
    # timm's sizes of two blocks in the first stage have 1x1 convolutions for Linear layers
    small = any(word in architecture for word in ("atto", "femto", "pico", "nano", "zepto"))
    model = timm.create_model(tag, dims=DIMS, depths=(2 if small else 1, 1, 1, 1), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def whole_shapes(tag: str) -> nn.Module:
    """The model itself, without memory."""
    with torch.device("meta"):
        return timm.create_model(tag)


def size_of(tag: str) -> str:
    """The name of the size that a tag's architecture has here; "" for none."""
    architecture = tag.partition(".")[0].removesuffix("_mlp").removesuffix("_hnf")
    return architecture if architecture in SIZES else ""


@cache
def describe(tag: str) -> Row:
    """The row of a tag."""
    found = timm.get_pretrained_cfg(tag)
    assert found is not None, tag
    cfg = found.to_dict()
    told = timm_evaluation(cfg)
    size = json.loads(told["image_size"])[0]
    seen = f"{size}, {json.loads(told['crop_pct']):g}, {json.loads(told['interpolation'])}"
    if tuple(cfg["mean"]) != tuple(IMAGENET.mean):
        seen += ", CLIP's mean" if round(cfg["mean"][0], 3) == 0.481 else ", its own mean"
    licence = cfg.get("license") or "unknown"
    licence = LICENCE_NAMES.get(licence, licence)
    try:
        if "xxlarge" in tag:  # which its channels tell
            to_ours(whole_shapes(tag).state_dict())
        recognised = to_ours(stand_in(tag).state_dict())
    except InputError as error:
        reason = str(error).removeprefix("a ConvNeXt of another kind: ")
        return Row(tag, "", f"refused: {reason}", "", seen, licence, ())
    rows = check_head(recognised.tensors, tag)
    classifier = f"{rows}" if rows else f"no: {recognised.head_problem}"
    if not rows and recognised.head_problem is None:
        classifier = "none"
    elif rows and ".clip_" in tag and "_ft_" not in tag:
        classifier = f"{rows}, an embedding"
    return Row(tag, size_of(tag), "yes", classifier, seen, licence, formats_of(recognised))


def formats_of(recognised: Recognised) -> tuple[str, ...]:
    """The formats that tensors can be written in."""
    found = []
    for target in TARGETS:
        try:
            from_ours(recognised.tensors, target)
        except InputError:
            continue
        found.append(target)
    return tuple(found)


def table() -> str:
    head = (
        "| timm's name | size here | encoder | classifier (rows) | sees (pixels, crop, "
        "interpolation) | converts to | licence of the weights |"
    )
    lines = [describe(tag).line() for tag in tags()]
    return "\n".join([head, "| --- " * 7 + "|", *lines])


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    said = (
        f"{len(tags())} names of timm {timm.__version__}, written by "
        "`python dev/write_weights_table.py`."
    )
    new = with_between(arguments.page, MARKS, f"{said}\n\n{table()}")
    if arguments.check and new != arguments.page.read_text(encoding="utf-8"):
        raise InputError(
            f"{arguments.page} is not what timm {timm.__version__} says: write it anew"
        )
    write_text(arguments.page, new)
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
