"""Every format that the docs name is read, turned as EXIF says, with all of its values."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tifffile
from image_formats import FORMATS, PIXELS, image_bytes
from PIL import Image, ImageOps

from images.files import ImageError, Reading, open_picture, read_image
from images.formats import image_endings
from images.picture import turned

LOSSY = {".jpg": 12, ".jpeg": 12, ".jpe": 12, ".jfif": 12, ".avif": 12, ".heic": 12, ".gif": 40}
GENERATOR = np.random.default_rng(0)


def read(data: bytes, reading: Reading) -> np.ndarray:
    return reading.read(open_picture(io.BytesIO(data)))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_valid_file_of_every_format_is_read(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(image_bytes(ending))
    found = read_image(tmp_path / f"a{ending}", Reading(3))
    if ending.startswith("16"):
        np.testing.assert_allclose(found * 255, PIXELS, atol=1e-4)
    else:
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - PIXELS).max() <= LOSSY.get(ending, 0)


def test_every_ending_that_counts_as_an_image_has_a_valid_file_in_these_tests():
    tested = {f".{name.rpartition('.')[2]}" for name in FORMATS}
    same_format = {".pgm", ".pbm", ".pnm", ".j2c", ".jpx", ".heif", ".hif"}
    assert image_endings() - same_format - {".dcm", ".dicom"} <= tested


@pytest.mark.parametrize(
    "settings",
    [{"lossless": True}, {"quality": 90}, {"save_all": True}, {"lossless": True, "exact": True}],
    ids=["lossless", "lossy", "animated", "alpha"],
)
def test_webp_is_read_plain_lossless_animated_and_with_alpha(settings):
    pixels = np.dstack([PIXELS, PIXELS[..., 0]]) if "exact" in settings else PIXELS
    if "save_all" in settings:
        settings = settings | {"append_images": [Image.new("RGB", (40, 48))], "lossless": True}
    found = read(image_bytes(".webp", pixels, **settings), Reading(3))
    worst = np.abs(found.astype(int) - PIXELS).max()
    assert worst <= (30 if settings.get("quality") else 0)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", "deep.png", "deep.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_of_every_kind_alike(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, path = PIXELS, tmp_path / "a"
    if ending == "deep.tif":
        wide = np.dstack([PIXELS] * 2).astype(np.uint16)
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, wide, photometric="minisblack", planarconfig="contig", extratags=tag)
        found = np.rint(read_image(path, Reading(6)) * 65535)[..., :3]
    elif ending == "deep.png":
        data = cv2.imencode(".png", PIXELS[..., ::-1].astype(np.uint16))[1].tobytes()
        eight = io.BytesIO()
        Image.fromarray(PIXELS).save(eight, "png", exif=exif)
        start = eight.getvalue().index(b"eXIf") - 4
        size = int.from_bytes(eight.getvalue()[start : start + 4], "big") + 12
        chunk = eight.getvalue()[start : start + size]
        end = data.index(b"IEND") - 4  # behind the pixels
        path.write_bytes(data[:end] + chunk + data[end:])
        found = np.rint(read_image(path, Reading(3)) * 65535)
    else:
        path.write_bytes(image_bytes(ending, exif=exif))
        found = read_image(path, Reading(3))
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    shown = turned(PIXELS, orientation) if ending.startswith("deep") else pixels
    with path.open("rb") as file:
        picture = open_picture(file)
        assert (picture.height, picture.width) == shown.shape[:2]
    np.testing.assert_array_equal(found, shown)


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = image_bytes(".png", exif=exif)
    start = data.index(b"eXIf") - 4
    size = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, rest = data[start : start + size], data[:start] + data[start + size :]
    end = rest.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(rest[:end] + chunk + rest[end:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", Reading(3)), np.rot90(PIXELS, -1))


def test_exif_that_is_damaged_turns_nothing_and_refuses_nothing():
    data = image_bytes(".jpg", exif=b"Exif\0\0damaged")
    plain = image_bytes(".jpg")
    np.testing.assert_array_equal(read(data, Reading(3)), read(plain, Reading(3)))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["pnm", "jp2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pnm_and_jpeg_2000_keep_every_level_of_their_bits(kind, bits, channels):
    values = GENERATOR.integers(0, 2**bits, (48, 40, channels)).astype(np.uint16)
    if kind == "pnm":
        magic = {1: b"P5", 3: b"P6"}[channels]
        head = b"%s\n# a comment 9 9 9\n40 48\n%d\n" % (magic, 2**bits - 1)
        data = head + values.astype(">u2").tobytes()
    else:
        imagecodecs = pytest.importorskip("imagecodecs")
        data = imagecodecs.jpeg2k_encode(
            values.squeeze(), reversible=True, level=0, codecformat="jp2", bitspersample=bits
        )
    np.testing.assert_array_equal(np.rint(read(data, Reading(channels)) * (2**bits - 1)), values)


def test_bits_per_sample_of_a_tiff_state_its_white():
    packed = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x08, 0x00]], np.uint8)  # 12 bits a value
    values = np.array([[0x000, 0xFFF], [0x800, 0x800]])
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 277: 1, 278: 2, 273: 122, 279: 6}
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little") for tag, value in sorted(tags.items())
    )  # fmt: skip
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    data = head + entries + bytes(4)
    assert len(data) == 122
    found = read(data + packed.tobytes(), Reading(1))
    np.testing.assert_allclose(found[..., 0], values / 4095, rtol=1e-6)


def test_white_is_zero_is_inverted_at_any_depth():
    for dtype in (np.uint8, np.uint16):
        dark = GENERATOR.integers(0, np.iinfo(dtype).max, (6, 9)).astype(dtype)
        tifffile.imwrite(stream := io.BytesIO(), dark, photometric="miniswhite")
        found = read(stream.getvalue(), Reading(1))[..., 0]
        expected = np.iinfo(dtype).max - dark
        if dtype == np.uint16:
            found = np.rint(found * 65535)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, ">u2", bool]
)
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_arrays_of_numpy_are_images(dtype, channels):
    values = GENERATOR.integers(0, 200, (12, 10, channels)).astype(dtype)
    np.save(stream := io.BytesIO(), values[..., 0] if channels == 1 else values)
    found = read(stream.getvalue(), Reading(channels))
    white = {"b": 1, "f": 1}.get(np.dtype(dtype).kind) or np.iinfo(dtype).max
    if found.dtype == np.uint8:
        np.testing.assert_array_equal(found, values * (255 // white))
    else:
        np.testing.assert_allclose(found, values / white, rtol=1e-6)


def test_an_array_of_bands_first_is_refused_with_its_shape():
    np.save(stream := io.BytesIO(), np.zeros((13, 12, 10), np.uint16))
    with pytest.raises(ImageError, match=r"10 channel.*\[13, 12, 10\] is read as \[height, width"):
        read(stream.getvalue(), Reading(13))
    np.save(stream := io.BytesIO(), np.array([object()]), allow_pickle=True)
    with pytest.raises(ImageError, match="integers or real numbers"):
        read(stream.getvalue(), Reading(1))


def dicom(values: np.ndarray, bits: int, kind: str = "MONOCHROME2", **tags: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = kind
    file.BitsAllocated, file.BitsStored = 8 * values.dtype.itemsize, bits
    file.HighBit, file.PixelRepresentation = bits - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(stream := io.BytesIO(), enforce_file_format=True)
    return stream.getvalue()


def test_dicom_is_read_by_its_stored_bits(tmp_path):
    values = GENERATOR.integers(0, 4096, (48, 40)).astype(np.uint16)
    found = read(dicom(values, 12), Reading(1))[..., 0]
    np.testing.assert_array_equal(np.rint(found * 4095), values)
    inverted = read(dicom(values, 12, "MONOCHROME1"), Reading(1))[..., 0]
    np.testing.assert_array_equal(np.rint(inverted * 4095), 4095 - values)
    np.testing.assert_array_equal(read(dicom(PIXELS, 8, "RGB"), Reading(3)), PIXELS)
    signed = (values.astype(np.int16) - 2048).astype(np.int16)
    found = read(dicom(signed, 12), Reading(1))[..., 0]
    np.testing.assert_allclose(found, signed / 2047, rtol=1e-6)
    (tmp_path / "a.dcm").write_bytes(dicom(PIXELS, 8, "RGB"))
    assert ".dcm" in image_endings()
    assert read_image(tmp_path / "a.dcm", Reading(3)).dtype == np.uint8


def test_dicom_of_several_frames_is_refused_with_the_remedy():
    values = GENERATOR.integers(0, 4096, (2 * 48, 40)).astype(np.uint16)
    with pytest.raises(ImageError, match="2 frames; save single images"):
        read(dicom(values, 12, Rows=48, NumberOfFrames=2), Reading(1))


@pytest.mark.parametrize("low", [0, 100])
def test_a_stated_range_becomes_0_to_1_and_values_beyond_it_are_refused(low):
    values = GENERATOR.integers(low, 4096, (12, 10)).astype(np.uint16)
    data = image_bytes(".npy", values)
    reading = Reading(1, value_range=(low, 4095))
    expected = (values - low) / (4095 - low)
    np.testing.assert_allclose(read(data, reading)[..., 0], expected, atol=1e-7)
    values[3, 4] = 5000
    with pytest.raises(ImageError, match=rf"to 5000, beyond the {low} to 4095 of --value-range"):
        read(image_bytes(".npy", values), reading)


def test_values_beyond_the_bits_that_a_file_states_are_refused():
    data = b"P5 2 1 4095 " + np.array([0, 5000], ">u2").tobytes()
    with pytest.raises(ImageError, match="to 5000, beyond the 0 to 4095 of the bits that the file"):
        read(data, Reading(1))


def test_raw_channels_are_neither_repeated_nor_mixed():
    grey = image_bytes(".png", PIXELS[..., 0])
    raw = Reading(3, converts=False, channels_setting="INPUT.FORMAT")
    with pytest.raises(ImageError, match=r"has 1 channel\(s\), not the 3 of INPUT.FORMAT; only a"):
        read(grey, raw)
    np.testing.assert_array_equal(read(grey, Reading(None))[..., 0], PIXELS[..., 0])


def test_our_own_mistakes_are_not_damage(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(image_bytes(".png"))
    monkeypatch.setattr("images.decoders.pillow_formats.READ_AS", None)
    with pytest.raises(AttributeError):
        read_image(tmp_path / "a.png", Reading(3))
