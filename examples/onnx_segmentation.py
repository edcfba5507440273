"""A class map of an image by an exported segmentation model: onnxruntime, numpy, OpenCV alone.

python examples/onnx_segmentation.py segmenter.onnx photo.jpg map.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
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
# 2. fitted into the long and short side of its test; padded at the right and below to a multiple of
#    32, with the mean colour, as in training
(height, width), scale = pixels.shape[:2], json.loads(metadata.get("scale", "[0, 0]"))
factor = min(max(scale) / max(height, width), min(scale) / min(height, width)) or 1
high, wide = (max(1, int(side * factor + 0.5)) for side in (height, width))
divisor = int(metadata["size_divisor"])
canvas = np.empty((high + -high % divisor, wide + -wide % divisor, wanted), np.float32)
canvas[:] = json.loads(metadata["pixel_mean"])
canvas[:high, :wide] = np.atleast_3d(cv2.resize(pixels, (wide, high)))
# 3. logits [1, K, H, W], brought to the image's size -> the class of each pixel
(logits,) = session.run(["logits"], {"images": canvas.transpose(2, 0, 1)[None]})
scores = cv2.resize(logits[0, :, :high, :wide].transpose(1, 2, 0), (width, height))
classes = np.atleast_3d(scores).argmax(2).astype(np.uint8)
Image.fromarray(classes).save(output)
for index, name in enumerate(json.loads(metadata["class_names"])):
    print(f"{name}: {100 * (classes == index).mean():.1f}% of the pixels")
