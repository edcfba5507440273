"""Choose the images to label next from their embeddings, by coverage or by typicality.

  * k-centre greedy: each next image is the one farthest from all that are labelled or chosen
    (Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach",
    ICLR 2018, Algorithm 1);
  * typicality: the images are grouped into as many clusters as there are labelled and wanted
    images; from the largest clusters without a labelled image the most typical image is taken, the
    one with the smallest mean distance to its neighbours (Hacohen, Dekel and Weinshall, "Active
    learning on a budget", ICML 2022: TypiClust).

Distances are Euclidean between features of length 1. docs/feature_analysis.md compares
them by measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from backbones.errors import InputError
from fcmae.features.embeddings import normalised

TYPICAL_NEIGHBOURS = 20
ITERATIONS = 100


def k_centre_greedy(
    features: np.ndarray, number: int, labelled: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Rows of ``features`` ``[I, C]``, the most urgent first.

    Args:
        number: how many to choose.
        labelled: rows that are labelled already; without, the first is the one nearest to the mean.
        seed: not used; the choice is a function of the features.
    """
    unit = normalised(features)

    def distance_to(row: int) -> np.ndarray:
        return np.linalg.norm(unit - unit[row], axis=1)

    chosen = [] if len(labelled) else [int(np.linalg.norm(unit - unit.mean(0), axis=1).argmin())]
    taken = np.zeros(len(unit), dtype=bool)
    taken[[*labelled, *chosen]] = True
    distance = reduce(np.minimum, map(distance_to, [*labelled, *chosen]))
    while len(chosen) < number:
        row = int(np.where(taken, -1, distance).argmax())
        chosen.append(row)
        taken[row] = True
        distance = np.minimum(distance, distance_to(row))
    return chosen[:number]


def typicality(
    features: np.ndarray, number: int, labelled: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Rows of ``features`` ``[I, C]``, those of the largest clusters first.

    Args:
        seed: of the clusters' first centres.
    """
    unit = normalised(features)
    clusters = k_means(unit, min(len(labelled) + number, len(unit)), seed)
    taken = np.zeros(len(unit), dtype=bool)
    taken[list(labelled)] = True
    chosen: list[int] = []
    while len(chosen) < number:
        count = np.bincount(clusters[taken], minlength=clusters.max() + 1)
        size = np.bincount(clusters[~taken], minlength=clusters.max() + 1)
        order = np.lexsort((-size, count))  # fewest labelled, then the largest
        cluster = next(c for c in order if size[c])
        members = np.flatnonzero(clusters == cluster)
        row = next(m for m in members[_by_typicality(unit[members])] if not taken[m])
        chosen.append(int(row))
        taken[row] = True
    return chosen


def random_choice(
    features: np.ndarray, number: int, labelled: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Rows drawn with ``seed``: the baseline for the other methods."""
    free = np.setdiff1d(np.arange(len(features)), labelled)
    return np.random.default_rng(seed).choice(free, number, replace=False).tolist()


CHOICES: dict[str, Callable[..., list[int]]] = {
    "k-centre": k_centre_greedy,
    "typicality": typicality,
    "random": random_choice,
}


def choose(
    by: str, features: np.ndarray, number: int, labelled: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Rows to label next, by a key of ``CHOICES``.

    Raises:
        InputError: if fewer than ``number`` rows are left.
    """
    left = len(features) - len(set(labelled))
    if not 1 <= number <= left:
        raise InputError(
            f"{number} images are to be chosen, and {left} are not yet labelled: choose 1 to {left}"
        )
    return CHOICES[by](features, number, labelled, seed)


def k_means(points: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """The cluster of each point ``[I, C]``: Lloyd's iterations from k-means++ centres.

    A cluster that loses all its points takes the one farthest from its own centre.
    """
    generator = np.random.default_rng(seed)
    centres = points[[int(generator.integers(len(points)))]]
    while len(centres) < clusters:
        distance = _squared(points, centres).min(1)
        total = distance.sum()
        share = distance / total if total > 0 else np.full(len(points), 1 / len(points))
        centres = np.concatenate((centres, points[[int(generator.choice(len(points), p=share))]]))
    found = _squared(points, centres).argmin(1)
    for _ in range(ITERATIONS):
        for cluster in range(clusters):
            members = points[found == cluster]
            if len(members):
                centres[cluster] = members.mean(0)
            else:
                own = np.linalg.norm(points - centres[found], axis=1)
                centres[cluster] = points[own.argmax()]
                found[own.argmax()] = cluster
        again = _squared(points, centres).argmin(1)
        if (again == found).all():
            break
        found = again
    return found


def _squared(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances ``[I, K]``, without a tensor of I x K x C."""
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
    return squares.clip(min=0)


def _by_typicality(members: np.ndarray) -> np.ndarray:
    """Rows in the order of their mean distance to their nearest neighbours, the smallest first."""
    distances = np.sqrt(_squared(members, members))
    np.fill_diagonal(distances, np.inf)
    k = min(TYPICAL_NEIGHBOURS, len(members) - 1)
    nearest = np.sort(distances, axis=1)[:, :k]
    return np.argsort(nearest.mean(1) if k else np.zeros(1), kind="stable")
