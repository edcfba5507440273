"""A class map of an image by an exported segmentation model: onnxruntime, numpy, OpenCV alone.

python examples/onnx_segmentation.py segmenter.onnx photo.jpg map.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnx_images import model_input
from PIL import Image

if len(sys.argv) != 4:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
model, photo, output = map(Path, sys.argv[1:])
if not model.is_file():
    sys.exit(f"error: there is no file {model}")
if not output.parent.is_dir():
    sys.exit(f"error: there is no folder {output.parent}")
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
if metadata.get("kind") != "segmentation":
    sys.exit(f"error: {model} is no segmentation model of tools/export.py")
# 1. the image as it was trained on: its channels, 0 to 255
wanted = session.get_inputs()[0].shape[1]
pixels = model_input(photo, metadata, wanted)
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
