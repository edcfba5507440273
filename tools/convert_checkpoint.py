"""Convert ConvNeXt encoders between all formats, and detectors between the two engines.

An input with detection heads is converted as a whole to detectron2 or torchvision; to any other
format goes its encoder. What is not carried over is listed, never dropped unsaid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from backbones.checkpoint import LAYOUT, read_source, save_ours
from backbones.convnext import ConvNeXt, GRNOptions
from backbones.errors import InputError
from backbones.key_adapters import ENCODER, FORMATS, from_ours, guess_size, size_name, to_ours
from backbones.weight_files import save_pickle, save_safetensors
from training.cli import ToolParser, log_to, run_tool
from training.progress import progress

TARGETS = [name for name in FORMATS if name != "fcmae"]
DETECTORS = ("detectron2", "torchvision")
IN_A_CONTAINER = ("official", "official-sparse", "detectron2")
EXAMPLES = """examples:
  python tools/convert_checkpoint.py runs/fcmae/encoder.safetensors encoder.pth --to official
  python tools/convert_checkpoint.py timm:convnextv2_tiny.fcmae tiny.safetensors --to ours
  python tools/convert_checkpoint.py runs/quick/model_final.safetensors d2.pth --to detectron2
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="a checkpoint of any format, or timm:NAME")
    parser.add_argument(
        "output",
        type=Path,
        help="its extension is the container's: .safetensors or .pth, .pt, .bin",
    )
    parser.add_argument("--to", required=True, choices=TARGETS)
    arguments = parser.parse_args()
    allowed = [".safetensors", ".pth", ".pt", ".bin"]
    if arguments.to == "ours":
        allowed = [".safetensors"]
    if arguments.to == "detectron2":
        allowed = [".pth"]
    if arguments.output.suffix not in allowed:
        parser.error(
            f"{arguments.output}: a file --to {arguments.to} ends in {' or '.join(allowed)}"
        )
    return arguments


def convert_detector(state_dict: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """A whole detector in the other engine's names (or the same)."""
    from detection.engines.weights import detectron2_to_torchvision, torchvision_to_detectron2

    if source == target:
        return state_dict
    return {
        "torchvision": detectron2_to_torchvision,
        "detectron2": torchvision_to_detectron2,
    }[target](state_dict)


def check_complete(tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError that names what keeps these from being a whole encoder's tensors."""
    size = guess_size(tensors)
    if size is None:
        raise InputError("its encoder is incomplete: whole stages are missing")
    with torch.device("meta"):
        model = ConvNeXt(size, in_chans=tensors["downsample_layers.0.0.weight"].shape[1])
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith(ENCODER)}
    wrong = sorted(dict(expected.items() ^ found.items()))
    if wrong:
        raise InputError(
            f"its encoder is not quite {size_name(size)}; missing, unexpected or of another "
            f"shape: {', '.join(wrong)}"
        )


def main() -> None:
    arguments = parse_arguments()
    log_to()
    target, output = arguments.to, arguments.output
    if output.exists() and Path(arguments.input).exists() and output.samefile(arguments.input):
        raise InputError(f"{output} is the input itself: name another output")
    bar = progress(text="read, convert, write", total=3, unit="step")
    state_dict, metadata = read_source(arguments.input)
    bar.update()
    try:
        recognised = to_ours(state_dict)
        check_complete(recognised.tensors)
        is_detector = target in DETECTORS and any(n.startswith("roi_heads.") for n in state_dict)
        if is_detector:
            converted = convert_detector(state_dict, recognised.format, target)
            dropped: list[str] = []
        else:
            converted, dropped = from_ours(recognised.tensors, target)
            dropped += recognised.others
    except ValueError as error:
        raise InputError(f"{arguments.input}: {error}") from None
    grn = metadata.get("grn", str(GRNOptions()))
    if grn != str(GRNOptions()) and target not in ("ours", *DETECTORS):
        raise InputError(f"{arguments.input} was trained with {grn}, which {target} cannot express")

    bar.update()
    licence = metadata.get("licence")
    kept = {name: metadata[name] for name in metadata if is_detector or name == "licence"}
    if target == "ours":
        kept = {**metadata, "converted_from": str(arguments.input)}
        save_ours(converted, output, kept)
    elif output.suffix == ".safetensors":
        save_safetensors(converted, output, kept)
    else:
        kept = {}
        save_pickle(converted, output, "model" if target in IN_A_CONTAINER else None)
    bar.close()
    source = "ours" if metadata.get("layout") == LAYOUT else recognised.format
    size = size_name(guess_size(recognised.tensors))
    print(f"read    {arguments.input}: {size}, {source} format, {len(state_dict)} tensors")
    print(f"wrote   {output}: {target} format, {len(converted)} tensors")
    if dropped:
        print(f"not carried over, {len(dropped)} tensors: {', '.join(dropped)}")
    if lost := sorted(metadata.keys() - kept.keys()):
        print(f"metadata that {output.name} has no place for: {', '.join(lost)}")
    print(f"licence of the weights: {licence or 'unknown'}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
