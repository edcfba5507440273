"""Time and memory of a training step, compared with transformers' UPerNet on the same encoder.

Both models have the same weights; that their losses are equal is checked first. A step is the
forward and the backward pass, without the optimizer, which is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backbones.convnext import SIZES, STAGES, build_convnext
from backbones.errors import InputError
from segmentation.model import UPerNet
from segmentation.upernet import UPerNetOptions
from segmentation.weights import to_our_names
from training.records.measure import Row, autocast, device_clock, interleaved, peak_bytes

CLASSES = 150  # ADE20K's
TOLERANCE = 1e-3  # relative difference of the two losses; bf16 rounds more
OTHER = "transformers"


def segmentation_case(
    size: str,
    precision: str,
    batch: int,
    image_size: int,
    rounds: int,
    device: torch.device,
    channels: int = 512,
) -> Row:
    """One row of the table: milliseconds and MiB of both, and their ratios.

    Args:
        precision: "fp32" or "bf16" (autocast).

    Raises:
        InputError: if transformers is not installed; and for a batch of one, whose pooled map of
            1x1 has no standard deviation for batch norm.
    """
    if batch < 2:
        raise InputError("--batch 1: UPerNet's batch norm needs at least 2 images here")
    reference, ours = build_pair(size, channels)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, generator=generator).to(device)
    labels = torch.randint(0, CLASSES, (batch, image_size, image_size), generator=generator)
    labels = labels.to(device)
    inputs = [{"image": x, "labels": y} for x, y in zip(images, labels, strict=True)]

    losses: dict[str, Callable[[], Tensor]] = {
        OTHER: lambda: reference(images, labels=labels).loss,
        "ours": lambda: sum(ours(inputs).values(), start=torch.zeros((), device=device)),  # type: ignore[union-attr]
    }
    models: dict[str, nn.Module] = {OTHER: reference, "ours": ours}
    for model in models.values():
        model.to(device).train()
        for module in model.modules():  # no dropout, so that the losses are equal
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
    with torch.no_grad(), autocast(precision, device):
        first, second = (float(loss()) for loss in losses.values())
    limit = 10 * TOLERANCE if precision == "bf16" else TOLERANCE
    assert abs(first - second) <= limit * abs(first), (first, second)

    def step(name: str) -> None:
        models[name].zero_grad()
        with autocast(precision, device):
            loss = losses[name]()
        loss.backward()

    steps = {name: lambda name=name: step(name) for name in losses}
    seconds = interleaved(steps, rounds, device, device_clock(device))
    memory = {name: peak_bytes(run, device) / 2**20 for name, run in steps.items()}
    return {
        "encoder": size,
        "precision": precision,
        "batch": batch,
        "pixels": image_size,
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        "time, ours / transformers": seconds["ours"] / seconds[OTHER],
        **{f"{name} MiB": value for name, value in memory.items()},
        "memory, ours / transformers": memory["ours"] / memory[OTHER],
    }


def build_pair(size: str, channels: int = 512) -> tuple[Any, UPerNet]:
    """transformers' UPerNet and this project's, with the same weights.

    Raises:
        InputError: if transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "this compares with transformers, which is not installed: pip install transformers"
        ) from error
    theirs: Any = transformers
    shape = SIZES[size]
    kind = theirs.ConvNextV2Config if shape.version == 2 else theirs.ConvNextConfig
    backbone = kind(
        hidden_sizes=list(shape.dims), depths=list(shape.depths), out_features=list(STAGES)
    )
    torch.manual_seed(0)
    reference = theirs.UperNetForSemanticSegmentation(
        theirs.UperNetConfig(
            backbone_config=backbone, hidden_size=channels, num_labels=CLASSES,
            auxiliary_channels=channels // 2, auxiliary_loss_weight=0.4, use_auxiliary_head=True,
            pool_scales=[1, 2, 3, 6], loss_ignore_index=255,
        )
    )  # fmt: skip
    options = UPerNetOptions(CLASSES, channels, aux_channels=channels // 2)
    ours = UPerNet(build_convnext(size, out_norms=STAGES), options, [0.0] * 3, [1.0] * 3)
    ours.load_state_dict(to_our_names(reference.state_dict()))
    return reference, ours
