"""Read a model's features at one place in each block (a tap), by forward hooks.

The ConvNeXt V2 paper measures "the high-dimensional features" of every block without naming the
tensor, so the place is a parameter (a *tap*):

  * ``dwconv``: after the depthwise convolution, C channels (ConvNeXts alone);
  * ``gelu``: the expanded channels after the activation, before GRN (of ViT: of its MLP);
  * ``grn``: the expanded channels as the block's last layer sees them: after GRN or what
    replaces it; the same as ``gelu`` in models without either (V1, ViT);
  * ``block``: the block's output, residual included.

Shape suffixes: B images, N sites of an image (in any order), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from backbones.convnext import Block
from backbones.errors import InputError

Tap = Literal["dwconv", "gelu", "grn", "block"]
TAPS: tuple[Tap, ...] = get_args(Tap)
DEFAULT_TAP: Tap = "grn"


class TapPoint(NamedTuple):
    """One block's tensor."""

    block: str  # the block's name in the model
    module: nn.Module  # whose input or output it is
    is_input: bool  # which of the two
    # of its dimensions behind the first: "channels_last" or "channels_first"
    layout: Literal["channels_last", "channels_first"]
    # tokens of ``[B, tokens, C]`` that are no site of the image (class tokens)
    prefix_tokens: int = 0

    def features(self, x: Tensor) -> Tensor:
        """The tensor as ``[B, N, C]``."""
        if x.ndim == 3:
            return x[:, self.prefix_tokens :]
        if self.layout == "channels_first":
            return x.flatten(2).transpose(1, 2)
        return x.flatten(1, -2)


def tap_points(model: nn.Module, tap: Tap = DEFAULT_TAP) -> list[TapPoint]:
    """The places of one tap in all blocks of a model, in the order of its layers.

    Blocks are those of our ConvNeXt; of a timm model, the modules with an MLP (ConvNeXt, ViT, Swin
    and their kin); of a timm model without any (ResNet), the parts of its stages, which have
    ``block`` alone.

    Raises:
        InputError: if the tap does not exist, or the model has no blocks or no such place in them.
    """
    if tap not in TAPS:
        raise InputError(f"tap is {tap!r}; allowed: {', '.join(TAPS)}")
    ours = [(name, m) for name, m in model.named_modules() if isinstance(m, Block)]
    if ours:
        return [_of_ours(name, block, tap) for name, block in ours]
    with_mlp = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(getattr(mlp := getattr(m, "mlp", None), "fc2", None), nn.Module)
        and isinstance(getattr(mlp, "act", None), nn.Module)
    ]
    if with_mlp:
        return [_of_timm(name, block, tap, model) for name, block in with_mlp]
    parts = list(_parts_of_stages(model))
    if not parts:
        raise InputError(
            f"{type(model).__name__} has no blocks that are known: neither a ConvNeXt's, nor "
            "modules with an MLP, nor timm's feature_info"
        )
    if tap != "block":
        raise InputError(
            f"{type(model).__name__} has no block with an MLP, so no tap {tap!r}: give --tap block"
        )
    layout = _output_layout(model)
    return [TapPoint(name, part, False, layout) for name, part in parts]


def _of_ours(name: str, block: Block, tap: Tap) -> TapPoint:
    if tap == "dwconv":  # the convolution itself may be computed without a call of its module
        return TapPoint(name, block.norm, True, "channels_last")
    if tap == "gelu":
        return TapPoint(name, block.act, False, "channels_last")
    if tap == "grn":
        return TapPoint(name, block.pwconv2, True, "channels_last")
    return TapPoint(name, block, False, "channels_first")


def _of_timm(name: str, block: Any, tap: Tap, model: nn.Module) -> TapPoint:
    prefix = getattr(model, "num_prefix_tokens", 0)
    if tap == "block":
        return TapPoint(name, block, False, _output_layout(model), prefix)
    if tap == "dwconv":
        if not isinstance(getattr(block, "conv_dw", None), nn.Conv2d):
            raise InputError(
                f"{type(model).__name__} has no depthwise convolution in its block {name}, so no "
                "tap 'dwconv': choose another"
            )
        return TapPoint(name, block.conv_dw, False, "channels_first")
    convolutional = isinstance(block.mlp.fc2, nn.Conv2d)
    layout: Any = "channels_first" if convolutional else "channels_last"
    if tap == "gelu":
        return TapPoint(name, block.mlp.act, False, layout, prefix)
    return TapPoint(name, block.mlp.fc2, True, layout, prefix)


def _output_layout(model: nn.Module) -> Any:
    nhwc = str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC")
    return "channels_last" if nhwc else "channels_first"


def _parts_of_stages(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for stage in getattr(model, "feature_info", []):
        name = stage["module"]
        for part, module in model.get_submodule(name).named_children():
            yield f"{name}.{part}", module


@contextmanager
def tapped(points: Sequence[TapPoint], receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within this context, ``receive(number of the block, [B, N, C])`` at each forward pass.

    Nothing is kept: memory is that of one block's features. Run the model without gradients.
    """

    def before(number: int, point: TapPoint) -> Callable[..., None]:
        return lambda module, inputs: receive(number, point.features(inputs[0]))

    def after(number: int, point: TapPoint) -> Callable[..., None]:
        return lambda module, inputs, output: receive(number, point.features(output))

    with ExitStack() as hooks:
        for number, point in enumerate(points):
            if point.is_input:
                handle = point.module.register_forward_pre_hook(before(number, point))
            else:
                handle = point.module.register_forward_hook(after(number, point))
            hooks.callback(handle.remove)
        yield


def run_features(model: nn.Module, images: Tensor) -> None:
    """A forward pass without the head, where the model has such a pass; for its taps."""
    run: Any = getattr(model, "forward_features", model)
    run(images)
