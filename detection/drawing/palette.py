"""Colours for classes, far apart for everybody, the same for a class in every picture.

Colour ``i`` is the one farthest from colours 0 to ``i - 1`` among those that are neither pale nor
dark, so it does not depend on how many classes there are. The distance of two colours is what
remains of it to the eye that tells them apart worst: with usual vision, without red cones or
without green ones. Distances are in OKLab (Björn Ottosson, 2020,
bottosson.github.io/posts/oklab); the two deficiencies are those of Machado, Oliveira and
Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, at
severity 1, on linear RGB.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0-255

FIRST: Colour = (64, 169, 255)
COUNT = 128
LIGHTNESS = (0.56, 0.88)
CHROMA = (0.1, 0.2)
STEPS = 20  # lightnesses; chromas are a fourth, hues three times as many

# The colour-blind see less of a difference anywhere; else only theirs would count.
EYES_SPREAD = np.array([1.6, 1.0, 1.0])

USUAL = np.eye(3)
NO_RED_CONES = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
NO_GREEN_CONES = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def class_colour(index: int) -> Colour:
    """The colour of the class at this position; from the 129th on they come again."""
    return _palette()[index % COUNT]


@lru_cache
def _palette() -> list[Colour]:
    candidates = np.vstack([FIRST, _candidates()])
    views = as_seen(candidates) / EYES_SPREAD[:, None, None]
    chosen, distance = [0], np.full(len(candidates), np.inf)
    while len(chosen) < COUNT:
        to_newest = np.linalg.norm(views - views[:, chosen[-1:]], axis=-1).min(0)
        distance = np.minimum(distance, to_newest)
        chosen.append(int(distance.argmax()))
    return [(int(r), int(g), int(b)) for r, g, b in candidates[chosen]]


def as_seen(colours: np.ndarray) -> np.ndarray:
    """``[N, 3]`` RGB 0-255 -> ``[3, N, 3]`` OKLab, as the three kinds of eyes see them."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    eyes = np.stack([linear @ view.T for view in (USUAL, NO_RED_CONES, NO_GREEN_CONES)]).clip(0, 1)
    return np.cbrt(eyes @ RGB_TO_LMS.T) @ LMS_TO_OKLAB.T


def _candidates() -> np.ndarray:
    """``[N, 3]`` RGB 0-255: a grid of lightness, chroma and hue, as far as a screen shows it."""
    lightness, chroma, hue = (
        axis.ravel()
        for axis in np.meshgrid(
            np.linspace(*LIGHTNESS, STEPS),
            np.linspace(*CHROMA, STEPS // 4),
            np.linspace(0, 2 * np.pi, STEPS * 3, endpoint=False),
        )
    )
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], 1)
    linear = (oklab @ np.linalg.inv(LMS_TO_OKLAB).T) ** 3 @ np.linalg.inv(RGB_TO_LMS).T
    linear = linear[((linear >= 0) & (linear <= 1)).all(1)]
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (values * 255).round()
