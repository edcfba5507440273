"""Embeddings: one vector for each image, from a stage of an encoder, and their neighbours.

Shape suffixes: B images of a batch, I images of all, C channels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from backbones.convnext import STAGES, ConvNeXt
from backbones.errors import InputError
from backbones.whole_files import write_atomically
from fcmae.features.images import AnalysisImages, choose_view
from fcmae.features.models import load_convnext
from images.statistics import Statistics
from training.devices import find_device
from training.progress import progress

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
CHUNK = 1024  # rows of a matrix of similarities at a time


@dataclass(frozen=True)
class EmbedOptions:
    """Settings of an embedding."""

    encoder: str  # a checkpoint of any format, ``timm:NAME`` of a ConvNeXt, or ``random:NAME``
    data: str  # a source of images; folders of classes are kept as labels
    stage: str = "stage4"  # "stage1" to "stage4", whose output is pooled
    pooling: Pooling = "mean"  # over the sites: their mean, or the largest value
    # height and width in pixels, multiples of 32; None: the size recorded with the encoder, or 224
    image_size: tuple[int, int] | None = None
    neighbours: int = 10  # how many of each image are written
    # batch_size, workers: of reading and running
    batch_size: int = 16
    workers: int = 0
    split: str = "train"  # of sources that have several
    device: str | None = None  # see :func:`training.devices.find_device`


@dataclass(frozen=True)
class Embeddings:
    """A folder's embeddings."""

    features: np.ndarray  # float32 ``[I, C]``
    names: list[str]  # of the images, for people
    classes: list[str]  # the names of their classes
    labels: list[int] | None  # the class of each; None where there are fewer than two classes
    images: AnalysisImages  # the images themselves
    # encoder, statistics: what made the features, and normalised the images
    encoder: ConvNeXt
    statistics: Statistics


@torch.no_grad()
def embed(
    encoder: ConvNeXt, batches: Iterable[Tensor], stage: str = "stage4", pooling: Pooling = "mean"
) -> np.ndarray:
    """The embeddings float32 ``[I, C]`` of normalised images ``[B, C, H, W]``.

    The encoder is put into evaluation mode and back.

    Raises:
        InputError: for an unknown stage or pooling, or features that are not finite.
    """
    if stage not in STAGES or pooling not in POOLINGS:
        raise InputError(
            f"stage is {stage!r} and pooling {pooling!r}; they are of {', '.join(STAGES)}, and of "
            f"{', '.join(POOLINGS)}"
        )
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    rows = []
    for images in batches:
        features = encoder.forward_features(images.to(device))[stage].float()
        pooled = features.mean((2, 3)) if pooling == "mean" else features.amax((2, 3))
        rows.append(pooled.cpu().numpy())
    encoder.train(was_training)
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        raise InputError(f"the features of {stage} are not finite: NaN or infinite")
    return found


def embed_folder(options: EmbedOptions) -> Embeddings:
    """The embeddings of all images of a source.

    Raises:
        FileNotFoundError, InputError: for an encoder or images that cannot be used.
    """
    encoder, loaded = load_convnext(options.encoder)
    encoder.to(find_device(options.device))
    view = choose_view([loaded.view], options.image_size)
    images = AnalysisImages(
        *(options.data, view, loaded.in_chans, None, options.split),
        *(loaded.value_range, loaded.show_bands),
    )
    batches = images.batches(
        loaded.statistics, options.batch_size, options.workers, torch.device("cpu")
    )
    count = -(-len(images) // options.batch_size)
    shown = progress((batch for batch, _ in batches), "embedding", count, "batch")
    features = embed(encoder, shown, options.stage, options.pooling)
    names = [images.name(place) for place in range(len(images))]
    return Embeddings(
        features, names, images.classes, images.labels, images, encoder, loaded.statistics
    )


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows ``[I, C]`` of length 1, in float64; a row of zeros stays so."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def nearest(
    queries: np.ndarray, among: np.ndarray, number: int, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows by cosine similarity, the nearest first; of equals the first row.

    Args:
        queries, among: ``[Q, C]``, ``[I, C]``.
        number: how many at most.
        same: queries are the rows of ``among``: none is its own neighbour.

    Returns:
        Rows of ``among`` and similarities, ``[Q, number]`` each.
    """
    number = min(number, len(among) - same)
    unit, others = normalised(queries), normalised(among)
    rows, similarities = [], []
    for start in range(0, len(unit), CHUNK):
        found = unit[start : start + CHUNK] @ others.T
        if same:
            found[np.arange(len(found)), np.arange(start, start + len(found))] = -np.inf
        order = np.argsort(-found, axis=1, kind="stable")[:, :number]
        rows.append(order)
        similarities.append(np.take_along_axis(found, order, 1))
    return np.concatenate(rows), np.concatenate(similarities)


def write_embeddings(path: Path, embeddings: Embeddings, options: EmbedOptions) -> None:
    """Write a NumPy archive: ``features``, ``names``, ``labels``, ``classes``, neighbours.

    ``labels`` are -1 without classes; ``neighbours`` are rows, ``similarities`` their cosines;
    ``options`` are the settings as JSON. The archive holds no pickled object.
    """
    rows, similarities = nearest(
        embeddings.features, embeddings.features, options.neighbours, same=True
    )
    told = {name: value for name, value in vars(options).items() if name != "device"}
    told |= vars(embeddings.images.view)
    arrays = {
        "features": embeddings.features,
        "names": np.array(embeddings.names),
        "labels": np.array(embeddings.labels or [-1] * len(embeddings.names)),
        "classes": np.array(embeddings.classes),
        "neighbours": rows.astype(np.int64),
        "similarities": similarities.astype(np.float32),
        "options": np.array(json.dumps(told)),
    }

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    logger.info("wrote %s: %d x %d", path, *embeddings.features.shape)
