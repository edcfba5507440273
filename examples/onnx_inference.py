"""Detect objects with an exported detector: onnxruntime, numpy, OpenCV alone.

python examples/onnx_inference.py detector.onnx photo.jpg overlay.png
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from onnx_images import model_input


def shares(low, high, pixels, cells):
    """How much each pixel centre takes of each cell between low and high, bilinearly."""
    at = (np.arange(pixels) + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(cells)))


def read_graph(path):
    """A session of an ONNX file, or an end that names it."""
    if not path.is_file():
        sys.exit(f"{path} is not there, or no file")
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own types, one for each status
        sys.exit(f"{path} cannot be read: {error}")


if len(sys.argv) != 4:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
graph, source, target = map(Path, sys.argv[1:])
if not target.parent.is_dir():
    sys.exit(f"{target.parent} is not there: make the folder of the overlay first")
if not cv2.haveImageWriter(str(target)):
    sys.exit(f"{target}: an overlay's name ends in .png or .jpg")
session = read_graph(graph)
facts = session.get_modelmeta().custom_metadata_map
if "class_names" not in facts or "channels" not in facts:
    sys.exit(f"{graph} is no detector of tools/export.py: it names no classes")
class_names, shortest, longest = (
    json.loads(facts[name]) for name in ("class_names", "min_size", "max_size")
)
wanted = session.get_inputs()[0].shape[1]
image = model_input(source, facts, wanted)
if session.get_inputs()[0].type == "tensor(float)":
    image = image.astype(np.float32)
elif image.dtype != np.uint8:
    sys.exit(f"{source} has more than 8 bits, and {graph} is of a detector of 8-bit images")

# what is drawn on: blue, green and red of the bands that the training's pictures showed
bands = json.loads(facts.get("show_bands", "[]")) or [[1], [1], [1, 2, 3]][min(wanted, 3) - 1]
shown = image[..., [band - 1 for band in bands]].astype(np.float64)
if facts["channels"] == "raw" or image.dtype != np.uint8:
    low, high = np.percentile(shown, (1, 99), axis=(0, 1))
    shown = ((shown - low) / np.maximum(high - low, 1e-9)).clip(0, 1) * 255
if facts["channels"] != "BGR":
    shown = shown[..., ::-1]
picture = np.ascontiguousarray(shown.repeat(3 // shown.shape[2], axis=2).round().astype(np.uint8))

# The shorter side becomes min_size, the longer at most max_size; a min_size of 0 keeps the size.
height, width = image.shape[:2]
scale = min(shortest / min(height, width), longest / max(height, width)) or 1
size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
bands_chw = np.ascontiguousarray(image.transpose(2, 0, 1))
images = np.stack([cv2.resize(band, size, interpolation=how) for band in bands_chw])[None]
values = session.run(None, {"images": images, "sizes": np.array([size[::-1]])})
found = {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}

found["boxes"] *= np.array([width / size[0], height / size[1]] * 2, np.float32)
for index, (x0, y0, x1, y1) in enumerate(found["boxes"]):
    name, score = class_names[found["labels"][index]], found["scores"][index]
    pixels = 0
    if "masks" in found and x1 > x0 and y1 > y0:
        mask = found["masks"][index]
        rows, columns = shares(y0, y1, height, len(mask)), shares(x0, x1, width, len(mask))
        inside = rows @ mask @ columns.T >= 0.5
        picture[inside], pixels = (
            picture[inside] // 2 + np.array([0, 100, 127], np.uint8),
            inside.sum(),
        )
    cv2.rectangle(picture, (round(x0), round(y0)), (round(x1), round(y1)), (0, 200, 255))
    print(f"{name} {score:.4f} {x0:.2f} {y0:.2f} {x1:.2f} {y1:.2f} {pixels}")
done, data = cv2.imencode(target.suffix, picture)
try:
    target.write_bytes(data.tobytes())
except OSError as error:
    sys.exit(f"{target} cannot be written: {error.strerror}")
