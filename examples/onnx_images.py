"""Any image file as the input of an exported model, without PyTorch, as docs/image_files.md says.

By OpenCV; .tif by tifffile, .dcm by pydicom. The examples beside this file use it.
"""

import json
import sys

import cv2
import numpy as np


def stored_pixels(path, alpha=False):
    """Values as the file has them, upright, colours as RGB: ``[h, w, C]``, and what means white."""
    suffix, orientation, inverted = path.suffix.lower(), 1, False
    if suffix == ".npy":
        pixels, bits = np.load(path), None
    elif suffix in (".tif", ".tiff"):
        import tifffile

        with tifffile.TiffFile(path) as file:
            series, page = file.series[0], file.series[0].keyframe
            pixels, bits = series.asarray(), page.bitspersample
            orientation = page.tags.valueof("Orientation", 1)
            inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        pixels = np.moveaxis(pixels, (series.axes.index("Y"), series.axes.index("X")), (0, 1))
    elif suffix in (".dcm", ".dicom"):
        import pydicom

        file = pydicom.dcmread(path)
        pixels, bits = file.pixel_array, int(file.BitsStored)
        inverted = file.PhotometricInterpretation == "MONOCHROME1"
    else:
        # alpha is kept by a flag that leaves EXIF's orientation out
        flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
        pixels, bits = cv2.imdecode(np.fromfile(path, np.uint8), flags), None
        if pixels is None:
            raise ValueError("it is damaged, or of another format")
        if pixels.ndim == 3:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    pixels = np.atleast_3d(pixels)
    kind = pixels.dtype.kind
    white = None if kind == "f" else np.iinfo(pixels.dtype).max
    if bits and kind != "f":
        white = 2 ** (bits - (kind == "i")) - 1
    if inverted and kind == "u":
        pixels = pixels.dtype.type(white) - pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels, white


def model_input(path, facts, wanted):
    """``[h, w, wanted]`` of 0 to 255: uint8, or float32 of more bits; or an end that says why not.

    Args:
        facts: the exported file's metadata.
        wanted: channels of its input.
    """
    if not path.is_file():
        sys.exit(f"{path} is not there, or no file")
    try:
        pixels, white = stored_pixels(path, alpha=wanted == 4)
    except Exception as error:  # each library has its own
        sys.exit(f"{path} cannot be read: {error}")
    order = facts.get("input_format") or facts["channels"]
    if order != "raw" and (pixels.shape[2], wanted) == (1, 3):
        pixels = pixels.repeat(3, axis=2)
    elif order != "raw" and (pixels.shape[2], wanted) == (3, 1):
        kept = pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32)
        pixels = cv2.cvtColor(kept, cv2.COLOR_RGB2GRAY)[..., None]
    if pixels.shape[2] != wanted:
        sys.exit(f"{path} has {pixels.shape[2]} channels, not the {wanted} that the model takes")
    pixels = pixels[..., ::-1] if order == "BGR" else pixels
    stated = json.loads(facts["value_range"])
    if pixels.dtype == np.uint8 and stated in ([], [0, 255]):
        return np.ascontiguousarray(pixels)
    if not np.isfinite(pixels).all():
        sys.exit(f"{path} holds NaN or infinite values")
    low, high = stated or (0, white or 1)
    least, most = pixels.min(), pixels.max()
    if (stated and least < low) or (most > high and (stated or white)):
        sys.exit(
            f"{path} holds values from {least} to {most}, beyond the {low:g} to {high:g} stated"
        )
    return ((pixels.astype(np.float64) - low) / (high - low) * 255).astype(np.float32)
