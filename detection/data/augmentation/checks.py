"""Which augmentations a config switches on, in words, and which other keys contradict them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COLOURS = ("RGB", "BGR")


def augmentation_contradictions(config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys involved, what is wrong) for valid values that do not go together."""
    options, section = config.INPUT.AUGMENTATION, "INPUT.AUGMENTATION"
    for name in ("SATURATION", "HUE"):
        if options[name] and config.INPUT.FORMAT not in COLOURS:
            yield (
                (f"{section}.{name}", "INPUT.FORMAT"),
                f"{section}.{name} is {options[name]}, but images of INPUT.FORMAT "
                f"{config.INPUT.FORMAT!r} have no colours: set it to 0; BRIGHTNESS, CONTRAST, BLUR "
                "and NOISE take any bands",
            )
    paste = options.COPY_PASTE
    if paste.ENABLED:
        for key, value, needed in (
            ("MODEL.MASK_ON", config.MODEL.MASK_ON, True),
            ("INPUT.MASK_FORMAT", config.INPUT.MASK_FORMAT, "bitmask"),
        ):
            if value != needed:
                yield (
                    (f"{section}.COPY_PASTE.ENABLED", key),
                    f"{section}.COPY_PASTE pastes objects by their masks: set {key} to {needed}, "
                    "or COPY_PASTE.ENABLED to False",
                )
    if paste.MIN_SCALE > paste.MAX_SCALE:
        yield (
            (f"{section}.COPY_PASTE.MIN_SCALE", f"{section}.COPY_PASTE.MAX_SCALE"),
            f"{section}.COPY_PASTE.MIN_SCALE {paste.MIN_SCALE} is above MAX_SCALE "
            f"{paste.MAX_SCALE}",
        )
    yield from _crop_contradictions(config.INPUT)


def _crop_contradictions(options: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    kind, size = options.CROP.TYPE, list(options.CROP.SIZE)
    if not options.CROP.ENABLED:
        return
    if options.LSJ.ENABLED:
        yield (
            ("INPUT.CROP.ENABLED", "INPUT.LSJ.ENABLED"),
            "INPUT.CROP and INPUT.LSJ both crop: set ENABLED of one to False",
        )
    keys = ("INPUT.CROP.TYPE", "INPUT.CROP.SIZE")
    said = f"INPUT.CROP.SIZE is {size}; TYPE {kind!r} "
    if kind.startswith("relative"):
        if not all(0 < part <= 1 for part in size):
            yield keys, f"{said}takes parts of height and width, above 0 and at most 1"
    elif not all(type(side) is int and side >= 1 for side in size):
        yield keys, f"{said}takes whole pixels, from 1"
    elif kind == "absolute_range" and size[0] > size[1]:
        yield keys, f"{said}takes the smallest side, then the largest"


def augmentation_words(config: Any) -> list[str]:
    """How training images are changed and drawn, each in a few words; empty for not at all."""
    options, words = config.INPUT, []
    crop, jitter, changes = options.CROP, options.LSJ, options.AUGMENTATION
    if options.RANDOM_FLIP != "none":
        words.append(
            "flips in both directions"
            if options.RANDOM_FLIP == "both"
            else f"{options.RANDOM_FLIP} flip"
        )
    if changes.ROTATE_90:
        words.append("turns by 90 degrees")
    if jitter.ENABLED:
        words.append(
            f"large-scale jitter {jitter.MIN_SCALE:g} to {jitter.MAX_SCALE:g}, crop {jitter.SIZE}"
        )
    elif crop.ENABLED:
        words.append(f"crop {crop.TYPE} {list(crop.SIZE)}")
    if options.TILES.ENABLED:
        words.append(f"tiles of {options.TILES.SIZE} at the images' own size")
    elif not jitter.ENABLED and len(sizes := options.MIN_SIZE_TRAIN) > 1:
        words.append(f"sizes {min(sizes)} to {max(sizes)}")
    names = ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE", "BLUR", "NOISE")
    words += [f"{name.lower()} {changes[name]:g}" for name in names if changes[name]]
    if changes.COPY_PASTE.ENABLED:
        words.append(f"Copy-Paste with probability {changes.COPY_PASTE.PROBABILITY:g}")
    if config.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        words.append(f"rare classes repeated below {config.DATALOADER.REPEAT_THRESHOLD:g}")
    return words
