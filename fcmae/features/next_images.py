"""The list and the page of the images to label next, and the probes of an embedded folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backbones.errors import InputError, counted
from backbones.whole_files import write_files
from fcmae.classification.data import set_apart
from fcmae.features.choose import choose
from fcmae.features.embeddings import Embeddings
from fcmae.features.probes import accuracies, patch_features, patch_labels, probe_patches
from images.display import shown
from reporting.blocks import Page, Paragraph, Picture, Pictures, Section
from reporting.html import render_html
from reporting.pictures import thumbnail

logger = logging.getLogger(__name__)

HELD_OUT = 0.3  # of the images, on which probes are evaluated


def write_next(
    output: Path,
    embeddings: Embeddings,
    number: int,
    by: str,
    labelled: Path | None = None,
    seed: int = 0,
) -> list[str]:
    """Choose images to label and write ``STEM_next.txt`` (a line per name) and ``STEM_next.html``.

    Args:
        output: the embeddings' file, which gives the stem.
        by: a key of :data:`fcmae.features.choose.CHOICES`.
        labelled: a list of names (paths, or the ends of paths) of images that are labelled already.

    Returns:
        The names of the chosen images.

    Raises:
        InputError: for names that are none of the images, or of several; for too few images.
    """
    done = [] if labelled is None else _rows_of(labelled, embeddings.names)
    rows = choose(by, embeddings.features, number, done, seed)
    names = [embeddings.names[row] for row in rows]
    pictures = [_thumbnail(embeddings, row, rank) for rank, row in enumerate(rows, 1)]
    words = (
        f"{number} of {counted(len(embeddings.names) - len(done), 'image')} without labels, by {by}"
    )
    sections = [
        Section("next", "In this order", [Pictures("", pictures)]),
        Section("list", "As a list", [Paragraph(name) for name in names]),
    ]
    page = Page("Which images to label next", words, sections)
    files = {
        output.with_name(f"{output.stem}_next.txt"): "".join(f"{name}\n" for name in names),
        output.with_name(f"{output.stem}_next.html"): render_html(page),
    }
    write_files(files)
    logger.info("wrote %s", " and ".join(map(str, files)))
    return names


def _rows_of(listed: Path, names: Sequence[str]) -> list[int]:
    wanted = [line.strip() for line in listed.read_text("utf-8", "surrogateescape").splitlines()]
    found: list[int] = []
    problems = []
    for line in filter(None, wanted):
        parts = Path(line).parts
        rows = [row for row, name in enumerate(names) if Path(name).parts[-len(parts) :] == parts]
        if len(rows) == 1:
            found += rows
        else:
            problems.append(f"{line} is {'none' if not rows else len(rows)} of the images")
    if problems:
        raise InputError(f"{listed}: " + "; ".join(problems[:20]))
    return found


def _thumbnail(embeddings: Embeddings, row: int, rank: int) -> Picture:
    image = shown(embeddings.images.whole(row), embeddings.images.show_bands)
    name = Path(embeddings.names[row]).name
    return Picture(thumbnail(image), f"{rank}. {name}", name)


def probe_classes(embeddings: Embeddings) -> dict[str, float]:
    """``knn`` and ``linear`` accuracy (%) of the classes, on a share of each that is set apart.

    Raises:
        InputError: if the images are not of two classes or more.
    """
    if embeddings.labels is None:
        raise InputError("a probe needs images in folders of two classes or more")
    held = set_apart(embeddings.names, embeddings.labels, HELD_OUT, 0)
    is_held = np.isin(np.arange(len(embeddings.names)), list(held))
    labels = np.array(embeddings.labels)
    x = embeddings.features
    return accuracies(x[~is_held], x[is_held], labels[~is_held], labels[is_held])


def probe_masks(embeddings: Embeddings, masks: Path, stage: str) -> dict[str, float]:
    """The dense probe on the images that have a mask: ``accuracy`` and ``miou`` (%).

    Args:
        masks: a folder of grey or palette PNGs, named as the images are; a value is a class, 255
            none.
        stage: whose patches are classified.

    Raises:
        InputError: for masks of another size than their image, or fewer than four images with one.
    """
    found = {path.stem: path for path in sorted(masks.glob("*.png"))}
    names = [Path(name).stem for name in embeddings.names]
    rows = [row for row, name in enumerate(names) if name in found]
    if len(rows) < 4:
        raise InputError(f"{masks} has a mask NAME.png for {len(rows)} of the images; 4 are needed")
    held = set_apart([names[row] for row in rows], [0] * len(rows), HELD_OUT, 0)
    device = next(embeddings.encoder.parameters()).device
    sets: tuple[list, list] = ([], [])
    for place, row in enumerate(rows):
        mask = np.asarray(Image.open(found[names[row]]))
        if mask.shape != embeddings.images.whole(row).shape[:2]:
            raise InputError(
                f"{found[names[row]]} is of {'x'.join(map(str, mask.shape))} pixels, and its image "
                f"{embeddings.names[row]} of another size"
            )
        values = torch.from_numpy(mask.astype(np.uint8))[None]
        cut = embeddings.images.view.cut(values, "nearest")
        image = embeddings.statistics.normalise(embeddings.images[row][None].to(device))
        features = patch_features(embeddings.encoder, image, stage)[0]
        sets[place in held].append((features, patch_labels(cut[0].numpy(), stage)))
    return probe_patches(*sets)
