"""Predictions as labels of other tools, to be corrected there and read back as labels to train on.

``labels_FORMAT/`` is made of ``annotations.json``, COCO's own, which every prediction writes. Names
are those of the images below their common folder, as ``tools/import_dataset.py --images`` wants it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from detection.data.formats.convert import WRITERS

logger = logging.getLogger(__name__)


def write_labels(output_dir: Path, formats: Sequence[str]) -> None:
    """Write ``labels_FORMAT/`` for each format, of a finished prediction.

    Args:
        formats: names of ``detection.data.formats.convert.WRITERS``; ``coco`` is there already.
    """
    formats = [name for name in formats if name != "coco"]
    if not formats:
        return
    tree = json.loads((output_dir / "annotations.json").read_text(encoding="utf-8"))
    for image in tree["images"]:
        if "frame" in image:  # of a video, by its number
            path = Path(image["file_name"])
            image["file_name"] = (path.parent / path.stem / f"{image['frame']:06d}.jpg").as_posix()
    for name in formats:
        WRITERS[name](tree, output_dir / f"labels_{name}")
        logger.info("labels: %s", output_dir / f"labels_{name}")
