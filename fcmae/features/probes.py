"""Probes of frozen features: k nearest neighbours and a linear classifier, for images and patches.

Both give scikit-learn's results, to the precision of its solver: ``KNeighborsClassifier`` with
cosine distances, and ``LogisticRegression`` (multinomial, L2) after ``StandardScaler``. Two small
functions here replace that dependency; the tests compare them with scikit-learn.

Shape suffixes: I images or patches, C channels, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from backbones.convnext import STRIDES, ConvNeXt
from fcmae.classification.data import LabelledData
from fcmae.classification.transforms import CROP_PCT, evaluation_transform
from fcmae.features.embeddings import embed, nearest
from images.statistics import Statistics

logger = logging.getLogger(__name__)

NEIGHBOURS = 10
BATCH = 16  # images at a time
IGNORED = 255  # in masks


def knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The class that most of the ``k`` nearest training features have, of equals the first.

    Args:
        train, test: ``[I, C]``.
        labels: of the training features, ``[I]``.

    Returns:
        Classes ``[I]`` of the test features.
    """
    rows, _ = nearest(test, train, k)
    classes = np.arange(labels.max() + 1)
    votes = (labels[rows][..., None] == classes).sum(1)
    return votes.argmax(1)


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of standardised features.

    Args:
        mean, scale: of the training features, ``[C]``.
        weight, bias: ``[K, C]``, ``[K]``.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """``[I, C]`` -> ``[I, K]``."""
        return (features - self.mean) / self.scale @ self.weight.T + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Classes ``[I]``."""
        return self.logits(features).argmax(1)


def linear_probe(train: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> LinearProbe:
    """Fit by L-BFGS in float64: sum of cross-entropies + ||weight||^2 / (2 ``strength``).

    Args:
        train: ``[I, C]``.
        labels: ``[I]``, 0 to K - 1.
        strength: scikit-learn's ``C``.

    Returns:
        The optimum, which is unique; of two classes scikit-learn's form, whose first row is 0.
    """
    mean = train.mean(0, dtype=np.float64)
    scale = train.std(0, dtype=np.float64)
    scale = np.where(scale > 10 * np.finfo(np.float64).eps * np.abs(mean), scale, 1)
    x = torch.from_numpy((train - mean) / scale)
    y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    classes = int(y.max()) + 1
    first = 1 if classes == 2 else 0  # rows that are not fitted
    free = torch.zeros(classes - first, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=1000,
        tolerance_grad=1e-7 * len(x),
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def rows() -> torch.Tensor:
        return torch.cat((torch.zeros(first, x.shape[1] + 1, dtype=torch.float64), free))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        both = rows()
        loss = F.cross_entropy(x @ both[:, :-1].T + both[:, -1], y, reduction="sum")
        loss = loss + both[:, :-1].square().sum() / (2 * strength)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    both = rows().detach().numpy()
    return LinearProbe(mean, scale, both[:, :-1], both[:, -1])


def probe_images(
    encoder: ConvNeXt,
    data: LabelledData,
    statistics: Statistics,
    image_size: tuple[int, int],
) -> dict[str, float]:
    """How well frozen features separate the classes of images: both probes' accuracy in percent.

    Args:
        data: the images to fit the probes on, and those to evaluate them on.
        image_size: height and width in pixels.

    Returns:
        ``knn`` and ``linear``.
    """
    transform = evaluation_transform(image_size, statistics.mean, statistics.std, CROP_PCT)
    features, labels = [], []
    for samples in (data.train, data.val):
        samples.transform = transform
        places = range(len(samples))
        batches = (
            torch.stack([samples[place][0] for place in places[at : at + BATCH]])
            for at in places[::BATCH]
        )
        features.append(embed(encoder, batches))
        labels.append(np.array(samples.labels))
    return accuracies(*features, *labels)


def accuracies(
    train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """``knn`` and ``linear``: the two probes' accuracy on ``test``, in percent."""
    found = {
        "knn": knn(train, train_labels, test),
        "linear": linear_probe(train, train_labels).predict(test),
    }
    return {name: 100 * float((said == test_labels).mean()) for name, said in found.items()}


def patch_labels(mask: np.ndarray, stage: str = "stage4") -> np.ndarray:
    """The most frequent class of each patch of a mask; of equals the lowest.

    Args:
        mask: ``[H, W]``, classes; 255 is of none.
        stage: its stride is the patch's side.

    Returns:
        ``[H // stride, W // stride]``; 255 where a patch holds nothing else.
    """
    side = STRIDES[stage]
    rows, columns = mask.shape[0] // side, mask.shape[1] // side
    patches = mask[: rows * side, : columns * side].reshape(rows, side, columns, side)
    patches = patches.transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    known = np.unique(mask[mask != IGNORED])
    if not len(known):
        return np.full((rows, columns), IGNORED)
    counts = np.stack([(patches == label).sum(-1) for label in known])
    return np.where(counts.max(0) > 0, known[counts.argmax(0)], IGNORED)


@torch.no_grad()
def patch_features(encoder: ConvNeXt, images: torch.Tensor, stage: str = "stage4") -> np.ndarray:
    """Normalised images ``[B, C, H, W]`` -> features of their patches, ``[B, h, w, C]``."""
    encoder.eval()
    features = encoder.forward_features(images)[stage].float()
    return features.permute(0, 2, 3, 1).cpu().numpy()


def probe_patches(
    train: Sequence[tuple[np.ndarray, np.ndarray]],
    test: Sequence[tuple[np.ndarray, np.ndarray]],
    most: int = 20_000,
    seed: int = 0,
) -> dict[str, float]:
    """The dense probe: a linear classifier of patches, by the masks of images.

    Args:
        train, test: of each image, features ``[h, w, C]`` and classes of its patches ``[h, w]``.
        most: patches that the probe is fitted on, drawn with ``seed``.

    Returns:
        ``accuracy`` over the patches and ``miou``, the mean over the classes of the test patches of
        intersection / union; both in percent.
    """
    x, y = _patches(train)
    if len(x) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(x), most, replace=False))
        x, y = x[chosen], y[chosen]
    classes, numbers = np.unique(y, return_inverse=True)
    probe = linear_probe(x, numbers)
    x_test, truth = _patches(test)
    said = classes[probe.predict(x_test)]
    ious = [
        ((said == label) & (truth == label)).sum() / ((said == label) | (truth == label)).sum()
        for label in np.unique(truth)
    ]
    return {"accuracy": 100 * float((said == truth).mean()), "miou": 100 * float(np.mean(ious))}


def _patches(images: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    x = np.concatenate([features.reshape(-1, features.shape[-1]) for features, _ in images])
    y = np.concatenate([labels.reshape(-1) for _, labels in images])
    return x[y != IGNORED], y[y != IGNORED]
