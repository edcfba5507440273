"""Detect objects with an exported detector: onnxruntime, numpy, OpenCV alone.

python examples/onnx_inference.py detector.onnx photo.jpg overlay.png
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def shares(low, high, pixels, cells):
    """How much each pixel centre takes of each cell between low and high, bilinearly."""
    at = (np.arange(pixels) + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(cells)))


def read(path, how):
    """What ``how`` makes of a file, or an end that names it."""
    if not path.is_file():
        sys.exit(f"{path} is not there, or no file")
    try:
        found = how(path)
    except Exception as error:  # onnxruntime has its own types, one for each status
        found, cause = None, str(error)
    else:
        cause = "it is damaged, or of another format"
    return found if found is not None else sys.exit(f"{path} cannot be read: {cause}")


if len(sys.argv) != 4:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
graph, source, target = map(Path, sys.argv[1:])
if not target.parent.is_dir():
    sys.exit(f"{target.parent} is not there: make the folder of the overlay first")
if not cv2.haveImageWriter(str(target)):
    sys.exit(f"{target}: an overlay's name ends in .png or .jpg")
session = read(
    graph, lambda path: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
)
facts = session.get_modelmeta().custom_metadata_map
if "class_names" not in facts or "channels" not in facts:
    sys.exit(f"{graph} is no detector of tools/export.py: it names no classes")
class_names, shortest, longest = (
    json.loads(facts[name]) for name in ("class_names", "min_size", "max_size")
)
deep = session.get_inputs()[0].type == "tensor(float)"  # of any number of channels and any depth


def pixels_of(path):
    if path.suffix == ".npy":
        return np.atleast_3d(np.load(path))
    if deep and path.suffix.lower() in (".tif", ".tiff"):
        import tifffile  # OpenCV's TIFFs have at most 4 channels

        array = np.atleast_3d(tifffile.imread(path))
        planes = array.shape[0] == session.get_inputs()[0].shape[1] != array.shape[2]
        return np.moveaxis(array, 0, 2) if planes else array
    kind = cv2.IMREAD_UNCHANGED if deep else cv2.IMREAD_COLOR
    return cv2.imdecode(np.fromfile(path, np.uint8), kind)


picture = read(source, pixels_of)
if deep:  # values as the detector was trained on: a stated range, or that of the type, as 0 to 255
    by_opencv = source.suffix.lower() not in (".npy", ".tif", ".tiff")
    if by_opencv and picture.ndim == 3 and picture.shape[2] in (3, 4):
        picture = picture[..., [2, 1, 0, 3][: picture.shape[2]]]
    low, high = json.loads(facts["value_range"]) or (
        (0, 1) if picture.dtype.kind == "f" else (0, np.iinfo(picture.dtype).max)
    )
    image = ((np.atleast_3d(picture).astype(np.float64) - low) / (high - low) * 255).astype("f4")
    low, high = np.percentile(image[..., :3], (1, 99))
    picture = ((image[..., :3] - low) / max(high - low, 1e-9)).clip(0, 1)
    picture = np.uint8(255 * picture.repeat(3 if picture.shape[2] < 3 else 1, 2)[..., 2::-1])
    picture = np.ascontiguousarray(picture)
else:
    colours = {"RGB": cv2.COLOR_BGR2RGB, "L": cv2.COLOR_BGR2GRAY}.get(facts["channels"])
    image = picture if colours is None else cv2.cvtColor(picture, colours)
channels = 1 if image.ndim == 2 else image.shape[2]
if channels != session.get_inputs()[0].shape[1]:
    sys.exit(f"{source} has {channels} channels, {graph} takes {session.get_inputs()[0].shape[1]}")

# The shorter side becomes min_size, the longer at most max_size; a min_size of 0 keeps the size.
height, width = image.shape[:2]
scale = min(shortest / min(height, width), longest / max(height, width)) or 1
size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
images = np.atleast_3d(cv2.resize(image, size, interpolation=how)).transpose(2, 0, 1)[None]
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
