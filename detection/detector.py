"""A run's detector as a function of one image, for Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as rle_codec

from backbones.errors import InputError
from detection.data.pixels import reading_of
from detection.engines import load_engine
from detection.engines.results import detect_on_image
from detection.predict import read_run
from images.picture import picture_of
from images.windows import Windows


@dataclass(frozen=True)
class Detection:
    """One object that was found.

    Args:
        box: left, top, right, bottom, in the image's pixels.
        mask: bool ``[H, W]``; None where the detector has no masks.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None


class Detector:
    """The detector of a run, loaded once and called image by image.

    Args:
        run: the ``OUTPUT_DIR`` of a training.
        weights: a detector instead of the run's newest checkpoint.
        overrides: ``KEY VALUE ...`` that change the run's config, such as ``MODEL.DEVICE cpu``.

    Raises:
        InputError: if the folder is not a run, or its config does not fit the overrides.
        FileNotFoundError: if ``weights`` does not exist.
    """

    def __init__(
        self, run: str | Path, weights: str | None = None, overrides: Sequence[str] = ()
    ) -> None:
        self.config, classes = read_run(Path(run), overrides)
        self._names = dict(zip(classes.category_ids, classes.class_names, strict=True))
        self._detect = load_engine(self.config.ENGINE).detector(self.config, classes, weights)

    def __call__(self, image: np.ndarray, score_threshold: float = 0.5) -> list[Detection]:
        """The objects in an image, the surest first.

        Args:
            image: uint8 ``[H, W, 3]``, RGB, of any size.
            score_threshold: 0 to 1; objects of a lower score are left out.

        Raises:
            InputError: for an array of another type or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"the image is {image.dtype} {list(image.shape)}; give uint8 [height, width, 3], "
                "RGB, as numpy.asarray(Image.open(file).convert('RGB'))"
            )
        whole = Windows(picture_of(image), reading_of(self.config))
        found = detect_on_image(self._detect, whole, self.config, 0)
        found = [result for result in found if result["score"] >= score_threshold]
        return [self._detection(r) for r in sorted(found, key=lambda r: -r["score"])]

    def _detection(self, result: dict) -> Detection:
        x, y, width, height = result["bbox"]
        rle = result.get("segmentation")
        return Detection(
            name=self._names[result["category_id"]],
            score=result["score"],
            box=(x, y, x + width, y + height),
            mask=rle_codec.decode(rle).astype(bool) if rle is not None else None,
        )
