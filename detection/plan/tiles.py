"""The rules for tiles of large images: whether, and of which size. Others are in ``rules``."""

from __future__ import annotations

import numpy as np

from detection.data.tiles import SIZES
from detection.plan.rules import MIDDLE, rounded_up, wanted_pixels
from detection.plan.survey import Survey
from training.plans import Machine, Plan

LARGEST_SIDE = {False: 512, True: 1333}  # is there a GPU -> longest side without tiles, pixels
TILE = {False: 256, True: 800}
TILE_OBJECTS = 2.0  # side of a tile, relative to the size that 95% of the objects have at most


def needs_tiles(survey: Survey, machine: Machine) -> bool:
    """Whether images are too large to be resized: objects would be lost, or steps would be slow.

    True where the wanted side is beyond ``LARGEST_SIDE`` and objects are small in the files too.
    """
    small_in_files = float(np.percentile(survey.object_sizes, 25)) <= 2 * MIDDLE
    limit = LARGEST_SIDE[machine.is_gpu]
    is_large = min(wanted_pixels(survey), float(np.median(survey.frames))) > limit
    return is_large and small_in_files


def plan_tiles(plan: Plan, survey: Survey, machine: Machine) -> None:
    """Parts of the images, not resized, that hold twice the size of all but 5% of the objects.

    Tiles overlap by as much as those objects measure, so that each is whole in one of them. No
    tile is larger than ``INPUT.TILES.SIZE: 0`` would choose: an object that no tile holds whole is
    united from its parts.
    """
    large = float(np.percentile(survey.boxes.max(1), 95))
    wanted = max(TILE[machine.is_gpu], rounded_up(TILE_OBJECTS * large, 32))
    size = min(wanted, SIZES[1])
    quarter = float(np.percentile(survey.object_sizes, 25))
    shrunk = quarter * LARGEST_SIDE[machine.is_gpu] / float(np.median(survey.frames))
    plan.set(
        "INPUT.TILES.ENABLED", True,
        f"a quarter of the objects has under {quarter:.0f} pixels in the files, and {shrunk:.0f} "
        f"if images were resized to {LARGEST_SIDE[machine.is_gpu]}",
    )  # fmt: skip
    why = f"twice the {large:.0f} pixels that 95% of the objects have at most, or more"
    parts = "objects that no tile holds are united from their parts"
    if size < wanted:
        why = f"the most that is planned; 5% of the objects have over {large:.0f} pixels: {parts}"
    plan.set("INPUT.TILES.SIZE", size, why)
    overlap = min(rounded_up(large, 8), size // 2)
    holds = overlap >= large
    why = "so that 95% of the objects are whole in one of the tiles"
    plan.set("INPUT.TILES.OVERLAP", overlap, why if holds else f"half of a tile: {parts}")
