"""The interface of an engine: what the rest of the project calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fvcore.common.config import CfgNode

from detection.dataset import CocoDataset

Detect = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Engine(Protocol):
    """The interface of both engines, ``ENGINE: torchvision`` and ``ENGINE: detectron2``."""

    name: str

    def train(
        self,
        config: CfgNode,
        dataset_train: CocoDataset,
        resume: bool,
        test_sets: Sequence[CocoDataset] | None = None,
    ) -> None:
        """Train and write ``metrics.json``, ``model_final.*`` and ``last_checkpoint``.

        With ``SOLVER.EMA.ENABLED`` also ``model_final_ema.*``, the average of the weights.

        Args:
            config: as :func:`detection.config.load_config` gives it; ``OUTPUT_DIR`` gets the files.
            dataset_train: with the detector's classes.
            resume: continue from the newest checkpoint in ``OUTPUT_DIR``, where there is one.
            test_sets: to evaluate on each ``TEST.EVAL_PERIOD`` and to draw, as loaded for an
                evaluation; their classes are the detector's. Metrics of the first are ``bbox/AP``,
                ..., those of the others ``LABEL/bbox/AP`` (``detection.dataset.set_labels``). None
                loads them by the config.

        Raises:
            ValueError: for values or weights that the engine cannot use.
            FileNotFoundError: for weights that do not exist.
        """

    def predict(
        self,
        config: CfgNode,
        dataset: CocoDataset,
        weights: str | None,
        folder: str = "inference",
    ) -> Path:
        """Detect on every image, resized by the config.

        Args:
            weights: a whole detector in either engine's format; None for the newest checkpoint
                in ``OUTPUT_DIR``.
            folder: where in ``OUTPUT_DIR`` the results go.

        Returns:
            ``OUTPUT_DIR/FOLDER/coco_instances_results.json``: COCO's results format with the
            annotations' own category ids, boxes in the original images' pixels. Detections of a
            class that the annotations lack are left out.

        Raises:
            ValueError: if the weights are not exactly this detector, or there are none.
            FileNotFoundError: if ``weights`` does not exist.
        """

    def detector(self, config: CfgNode, dataset: CocoDataset, weights: str | None) -> Detect:
        """A detector as a function of one image; what :meth:`predict` does to each of its images.

        Args:
            dataset: gives the classes; its records are not read.
            weights: as for :meth:`predict`.

        Returns:
            A function from a sample (:func:`detection.data.transforms.sample_of_values`) to its
            detections in COCO's results format.

        Raises:
            ValueError, FileNotFoundError: as :meth:`predict`.
        """
