"""Measures time and memory of packed, masked-dense and dense encoders in turn, in one process.

The table has medians over rounds. The masked-dense baseline uses PyTorch's own operators on
channels-last tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn

from backbones.compiling import compiled_encoders
from backbones.convnext import SIZES, STRIDES, build_convnext
from backbones.kernels import stock_operators
from backbones.param_groups import parameter_groups
from fcmae.masking import grid_size, random_mask, visible_count
from fcmae.model import FCMAE
from fcmae.packed import MaskedDenseEncoder, PackedEncoder
from fcmae.packed_mask import PackedMask
from training.records.measure import Row, autocast, device_clock, interleaved


@dataclass(frozen=True)
class EncoderCase:
    """One line of the table."""

    size: str  # a key of ``SIZES``
    precision: str = "fp32"  # "fp32" or "bf16" (autocast)
    batch: int = 8  # images
    image_size: int = 224  # pixels of a square image
    mask_ratio: float = 0.6  # fraction of patches removed

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return autocast(self.precision, device)

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, PackedMask]:
        """Images, a mask, and the mask with its index tables, as the data loader makes it."""
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, device=device)
        grid = grid_size(self.image_size, self.image_size)
        mask = random_mask(self.batch, grid, self.mask_ratio).to(device)
        return images.contiguous(memory_format=torch.channels_last), mask, PackedMask.of(mask)

    def described(self) -> Row:
        """The first columns of a row, which describe the case."""
        return {
            "encoder": self.size,
            "precision": self.precision,
            "batch": self.batch,
            "pixels": self.image_size,
            "mask": self.mask_ratio,
        }


def arithmetic_bound(case: EncoderCase) -> float:
    """Multiply-adds of the packed encoder / the dense one's, with dense depthwise convolutions."""
    size = SIZES[case.size]
    rows, columns = grid_size(case.image_size, case.image_size)
    share = visible_count(rows * columns, case.mask_ratio) / (rows * columns)
    packed = dense = 0.0
    channels_in = 3
    for c, depth, stride, k in zip(
        size.dims, size.depths, STRIDES.values(), (4, 2, 2, 2), strict=True
    ):
        sites = (case.image_size // stride) ** 2
        pointwise = sites * (channels_in * k * k * c + depth * 8 * c * c)
        depthwise = sites * depth * 49 * c
        packed += share * pointwise + depthwise
        dense += pointwise + depthwise
        channels_in = c
    return packed / dense


def saved_bytes(run: Callable[[], Tensor], parameters: set[int]) -> int:
    """Bytes that autograd stores for the backward pass of ``run``, without weights."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(kept.values())


def encoder_case(case: EncoderCase, rounds: int, device: torch.device) -> Row:
    """The encoder's forward and backward pass: dense, timm's, masked-dense, packed."""
    torch.manual_seed(0)
    encoder = build_convnext(case.size).to(device)
    reference = timm.create_model(case.size, num_classes=0, global_pool="").to(device)
    reference = reference.to(memory_format=torch.channels_last)
    images, mask, packed_mask = case.inputs(device)
    forwards: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "dense": (encoder, lambda: encoder.forward_features(images)["stage4"]),
        "timm": (reference, lambda: reference(images)),
        "masked-dense": (encoder, lambda: MaskedDenseEncoder(encoder)(images, mask)),
        "packed": (encoder, lambda: PackedEncoder(encoder)(images, packed_mask)),
    }

    def step(model: nn.Module, forward: Callable[[], Tensor]) -> None:
        model.zero_grad()
        with case.autocast(device):
            output = forward()
        output.float().square().mean().backward()

    steps = {name: partial(step, *variant) for name, variant in forwards.items()}
    seconds = interleaved(steps, rounds, device)
    memory = {}
    for name in ("dense", "masked-dense", "packed"):
        weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        with case.autocast(device):
            memory[name] = saved_bytes(forwards[name][1], weights) / 2**20
    return {
        **case.described(),
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        "packed / masked-dense": seconds["packed"] / seconds["masked-dense"],
        "packed / dense": seconds["packed"] / seconds["dense"],
        "bound": arithmetic_bound(case),
        "dense / timm": seconds["dense"] / seconds["timm"],
        "saved MiB packed": memory["packed"],
        "saved MiB masked-dense": memory["masked-dense"],
        "saved packed / masked-dense": memory["packed"] / memory["masked-dense"],
    }


def inference_case(
    case: EncoderCase, rounds: int, device: torch.device, compiles: bool = False
) -> Row:
    """The dense encoder without gradients: PyTorch's operators, fused ones, ``torch.compile``."""
    torch.manual_seed(0)
    encoder = build_convnext(case.size).to(device).eval()
    images = torch.randn(case.batch, 3, case.image_size, case.image_size, device=device)

    @torch.no_grad()
    def run(around: Callable[[], AbstractContextManager]) -> None:
        with around(), case.autocast(device):
            encoder.forward_features(images)

    with compiled_encoders():  # keeps the compiled program
        variants = {
            "eager": partial(run, stock_operators),
            "fused": partial(run, partial(compiled_encoders, False)),
            **({"compiled": partial(run, nullcontext)} if compiles else {}),
        }
        seconds = interleaved(variants, rounds, device, device_clock(device))
    return {
        **{name: value for name, value in case.described().items() if name != "mask"},
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        **{f"{name} / eager": seconds[name] / seconds["eager"] for name in list(variants)[1:]},
        "images/s": case.batch / min(seconds.values()),
    }


def pretrain_case(case: EncoderCase, rounds: int, device: torch.device) -> Row:
    """A whole pretraining step (encoder, decoder, loss, AdamW), masked-dense and packed."""
    steps: dict[str, Callable[[], None]] = {}
    images, _, packed_mask = case.inputs(device)
    for mode in ("masked-dense", "packed"):
        torch.manual_seed(0)
        model = FCMAE(build_convnext(case.size), encoder_mode=mode).to(device)
        groups = parameter_groups(model, 1e-4, 0.05)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

        def step(model: FCMAE = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with case.autocast(device):
                loss = model(images, packed_mask).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[mode] = step
    seconds = interleaved(steps, rounds, device)
    return {
        **case.described(),
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        "packed / masked-dense": seconds["packed"] / seconds["masked-dense"],
        "packed images/s": case.batch / seconds["packed"],
    }
