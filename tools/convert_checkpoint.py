"""Convert ConvNeXt encoders between all formats, and detectors between the two engines.

A detector is converted as a whole to detectron2 or torchvision; to any other format, only its
encoder is. What is left out is listed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from backbones.checkpoint import EncoderFile, recognised_file, save_ours
from backbones.convnext import ConvNeXt, GRNOptions
from backbones.errors import InputError, counted
from backbones.key_adapters import FORMATS, from_ours
from backbones.weight_files import save_pickle, save_safetensors
from backbones.weights.huggingface import write_huggingface_files
from backbones.weights.sources import read_source
from backbones.weights.structure import ENCODER, HEAD, check_head, guess_size, size_name
from detection.engines.mmdetection import is_mmdetection, mmdetection_to_detectron2
from training.cli import ToolParser, log_to, run_tool
from training.progress import progress

TARGETS = [name for name in FORMATS if name != "fcmae"]
DETECTORS = ("detectron2", "torchvision")
KEEPS_GRN = DETECTORS  # in the metadata; they are this project's own layouts
IN_A_CONTAINER = ("official", "official-sparse", "detectron2")
EXAMPLES = """examples:
  python tools/convert_checkpoint.py runs/fcmae/encoder.safetensors encoder.pth --to official
  python tools/convert_checkpoint.py timm:convnextv2_tiny.fcmae tiny.safetensors --to ours
  python tools/convert_checkpoint.py dino.pth teacher.safetensors --to ours --key teacher
  python tools/convert_checkpoint.py runs/quick/model_final.safetensors d2.pth --to detectron2
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("input", help="a checkpoint of any format, or timm:NAME")
    add(
        "output",
        type=Path,
        help="the file to write; its ending, .safetensors, .pth, .pt or .bin, sets the file type",
    )
    add("--to", required=True, choices=TARGETS)
    add("--key", help="which set of tensors, if the file has several: model_ema, teacher, ...")
    add("--no-head", action="store_true", help="do not write the head of a classifier")
    add("--in-chans", type=int, help="channels of the images, with --adapt-channels")
    add(
        "--adapt-channels",
        action="store_true",
        help="convert weights for another number of channels to --in-chans, by timm's rule",
    )
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
    """A whole detector, its tensors renamed for the target engine."""
    from detection.engines.renaming import detectron2_to_torchvision, torchvision_to_detectron2

    if source == target:
        return state_dict
    return {
        "torchvision": detectron2_to_torchvision,
        "detectron2": torchvision_to_detectron2,
    }[target](state_dict)


def check_complete(file: EncoderFile) -> None:
    """Raise an InputError that names what keeps this from being a whole encoder."""
    with torch.device("meta"):
        model = ConvNeXt(file.size, in_chans=file.in_chans, grn=file.grn)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {n: tuple(t.shape) for n, t in file.tensors.items() if n.startswith(ENCODER)}
    wrong = sorted(dict(expected.items() ^ found.items()))
    if wrong:
        raise InputError(
            f"{file.source}: its encoder is not a complete {size_name(file.size)}; missing, "
            f"unexpected or of another shape: {', '.join(wrong)}"
        )


def check_grn(file: EncoderFile, target: str) -> None:
    """Refuse a target that cannot store another form of GRN: the file would compute something else.

    Raises:
        InputError: if it cannot.
    """
    if file.grn is None or file.grn == GRNOptions() or target == "ours":
        return
    if target not in KEEPS_GRN:
        raise InputError(
            f"{file.source} was trained with {file.grn}, which {target} cannot express"
        )


def parts_to_write(file: EncoderFile, no_head: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors to convert, and the names of the head's tensors that are left out."""
    left_out = [name for name in file.tensors if no_head and name.startswith(HEAD)]
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in left_out}
    check_head(tensors, file.source)
    return tensors, left_out


def main() -> None:
    arguments = parse_arguments()
    log_to()
    target, output = arguments.to, arguments.output
    if output.exists() and Path(arguments.input).exists() and output.samefile(arguments.input):
        raise InputError(f"{output} is the input itself: name another output")
    bar = progress(text="read, convert, write", total=3, unit="step")
    state_dict, metadata = read_source(arguments.input, key=arguments.key)
    file = recognised_file(arguments.input, state_dict, metadata)
    bar.update()
    check_complete(file)
    check_grn(file, target)
    if is_mmdetection(state_dict) and target in DETECTORS:
        state_dict = mmdetection_to_detectron2(state_dict)
        file = recognised_file(file.source, state_dict, file.metadata)
    is_detector = target in DETECTORS and any(n.startswith("roi_heads.") for n in state_dict)
    in_chans = arguments.in_chans or file.in_chans
    if in_chans != file.in_chans:
        if not arguments.adapt_channels:
            raise InputError(
                f"{file.source} takes images of {counted(file.in_chans, 'channel')}, not "
                f"{in_chans}: add --adapt-channels to convert its stem"
            )
        file = file.with_channels(in_chans)
        stem = "downsample_layers.0.0.weight"  # whatever precedes it in a detector
        state_dict |= {n: file.tensors[stem] for n in state_dict if n.endswith(stem)}
    try:
        if is_detector:
            converted = convert_detector(state_dict, file.recognised.format, target)
            dropped: list[str] = []
        else:
            tensors, dropped = parts_to_write(file, arguments.no_head)
            converted, no_place = from_ours(tensors, target)
            dropped += no_place + file.recognised.others
    except InputError as error:
        if str(error).startswith(str(arguments.input)):
            raise
        raise InputError(f"{arguments.input}: {error}") from None

    bar.update()
    metadata = file.metadata
    kept = {n: metadata[n] for n in metadata if is_detector or n in ("licence", "grn")}
    written = [output]
    if target == "ours":
        kept = {**metadata, "converted_from": str(arguments.input)}
        save_ours(converted, output, kept)
    elif output.suffix == ".safetensors":
        save_safetensors(converted, output, kept)
    else:
        other_grn = file.grn not in (None, GRNOptions())
        kept = kept if is_detector or other_grn else {}
        container = target in IN_A_CONTAINER or bool(kept)
        save_pickle(converted, output, "model" if container else None, kept)
    if target == "huggingface":
        written += [
            output.with_name(name)
            for name in write_huggingface_files(output.parent, tensors, metadata)
        ]
        kept |= {n: metadata[n] for n in ("mean", "std", "classes") if n in metadata}
    bar.close()
    size = size_name(guess_size(file.tensors))
    form = file.recognised.format
    print(f"read    {arguments.input}: {size}, {form} format, {counted(len(state_dict), 'tensor')}")
    print(f"wrote   {output}: {target} format, {counted(len(converted), 'tensor')}")
    for path in written[1:]:
        print(f"wrote   {path}")
    if dropped:
        print(f"not carried over, {counted(len(dropped), 'tensor')}: {', '.join(dropped)}")
    if file.recognised.head_problem:
        print(f"the classifier's head was left out: {file.recognised.head_problem}")
    if lost := sorted(metadata.keys() - kept.keys()):
        print(f"metadata that {output.name} cannot store: {', '.join(lost)}")
    print(f"licence of the weights: {metadata.get('licence') or 'unknown'}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
