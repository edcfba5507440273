"""A class map of an image by an exported segmentation model: onnxruntime, numpy, Pillow alone.

Images of other bands or depths (``INPUT.FORMAT raw``) are .npy, or .tif by tifffile.

python examples/onnx_segmentation.py segmenter.onnx photo.jpg map.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) != 4:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
model, photo, output = map(Path, sys.argv[1:])
for path in (model, photo):
    if not path.is_file():
        sys.exit(f"error: there is no file {path}")
if not output.parent.is_dir():
    sys.exit(f"error: there is no folder {output.parent}")
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
if metadata.get("kind") != "segmentation":
    sys.exit(f"error: {model} is no segmentation model of tools/export.py")

wanted = session.get_inputs()[0].shape[1]


def pixels_of(path: Path) -> np.ndarray:
    """``[h, w, C]``, as the file has it; RGB or grey upright."""
    if path.suffix == ".npy":
        return np.atleast_3d(np.load(path))
    if path.suffix.lower() in (".tif", ".tiff") and metadata["input_format"] == "raw":
        import tifffile

        array = np.atleast_3d(tifffile.imread(path))
        return np.moveaxis(array, 0, 2) if array.shape[0] == wanted != array.shape[2] else array
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        return np.atleast_3d(np.asarray(upright.convert("L" if wanted == 1 else "RGB")))


# 1. the image as it was trained on: its channels, 0 to 255
pixels = pixels_of(photo)
if pixels.shape[2] != wanted:
    sys.exit(f"error: {photo} has {pixels.shape[2]} channels, {model} takes {wanted}")
if metadata["input_format"] == "BGR":
    pixels = pixels[:, :, ::-1]
if pixels.dtype != np.uint8:  # a stated range, or that of the type
    low, high = json.loads(metadata["value_range"]) or (
        (0, 1) if pixels.dtype.kind == "f" else (0, np.iinfo(pixels.dtype).max)
    )
    pixels = (pixels.astype(np.float64) - low) / (high - low) * 255
# 2. padded at the right and below to a multiple of 32, with the mean colour, as in training
height, width = pixels.shape[:2]
divisor = int(metadata["size_divisor"])
canvas = np.empty((height + -height % divisor, width + -width % divisor, wanted), np.float32)
canvas[:] = json.loads(metadata["pixel_mean"])
canvas[:height, :width] = pixels
images = canvas.transpose(2, 0, 1)[None]
# 3. logits [1, K, H, W] -> the class of each pixel
(logits,) = session.run(["logits"], {"images": images})
classes = logits[0, :, :height, :width].argmax(0).astype(np.uint8)
Image.fromarray(classes).save(output)
for index, name in enumerate(json.loads(metadata["class_names"])):
    print(f"{name}: {100 * (classes == index).mean():.1f}% of the pixels")
