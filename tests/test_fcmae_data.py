from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms import v2

from fcmae.data import collate, pretraining_samples
from images.bad_images import BadImages
from images.files import ImageError
from training.data import BatchOrder, SampleKey, SeededSamples, build_loader, seed_generators


def draw(samples, index, seed=0):
    seed_generators(seed, 0, 0, index)
    return samples[index]


def damage(folder, name):
    """Cut a picture's pixels off behind its good header."""
    (victim,) = folder.rglob(name)
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(victim)
    victim.write_bytes(victim.read_bytes()[:4000])
    return victim


def place(samples, path):
    return [samples.describe(i) for i in range(len(samples))].index(str(path))


def test_a_sample_depends_on_its_seed_alone(image_folder):
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6)
    image, mask, _ = draw(samples, 3)
    assert not torch.equal(draw(samples, 3, seed=1)[0], image)
    again, mask_again, _ = draw(samples, 3)
    assert torch.equal(image, again)
    assert torch.equal(mask, mask_again)


def test_each_epoch_crops_and_masks_a_sample_anew(image_folder):
    samples = pretraining_samples(str(image_folder), (96, 96), 0.6)
    first, again, later, other = (
        SeededSamples(samples, seed)[SampleKey(epoch, 3)][1]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    for part in range(2):  # image, mask
        assert torch.equal(first[part], again[part])
        assert not torch.equal(first[part], later[part])
        assert not torch.equal(first[part], other[part])


def test_augmentation_is_torchvisions_crop_and_flip(image_folder):
    samples = pretraining_samples(str(image_folder), (64, 96), 0.6)
    augment = v2.Compose(
        [
            v2.RandomResizedCrop((64, 96), (0.2, 1), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )
    for index in range(6):
        picture = np.array(Image.open(samples.describe(index)))
        image = draw(samples, index)[0]
        assert image.dtype == torch.uint8
        seed_generators(0, 0, 0, index)
        assert torch.equal(image, augment(torch.from_numpy(picture).permute(2, 0, 1)))


@pytest.mark.parametrize("whole", [False, True])
def test_large_jpegs_are_decoded_whole_where_that_is_asked_for(tmp_path, whole):
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    samples = pretraining_samples(str(tmp_path), (64, 64), 0.6, whole_jpegs=whole)
    image = draw(samples, 0)[0]
    seed_generators(0, 0, 0, 0)
    crop = v2.RandomResizedCrop((64, 64), (0.2, 1), interpolation=v2.InterpolationMode.BICUBIC)
    pixels = np.array(Image.open(tmp_path / "noise.jpg"))
    of_all = v2.RandomHorizontalFlip()(crop(torch.from_numpy(pixels).permute(2, 0, 1)))
    assert torch.equal(image, of_all) == whole


@pytest.mark.parametrize("channels", range(1, 14))
def test_every_one_of_1_to_13_bands_is_augmented_alike(tmp_path, channels):
    band = np.random.default_rng(0).integers(0, 65536, (50, 70)).astype(np.uint16)
    bands = np.stack([band // (b + 1) for b in range(channels)], -1)
    planes = "contig" if channels > 1 else None
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig=planes)
    samples = pretraining_samples(str(tmp_path), (32, 64), 0.6, in_chans=channels)
    image, mask, _ = draw(samples, 0)
    assert image.dtype == torch.float32
    assert image.shape == (channels, 32, 64)
    assert mask.shape == (1, 2)
    for b in range(channels):
        torch.testing.assert_close(image[b], image[0] / (b + 1), atol=5e-5, rtol=0)


def test_batches_of_8_and_16_bits_share_one_scale():
    eight = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    sixteen = torch.full((3, 32, 32), 0.2)
    mask = torch.zeros(1, 1, dtype=torch.bool)
    images, masks, met = collate([(eight, mask, {1: "x"}), (sixteen, mask, {2: "y"})])
    torch.testing.assert_close(images, torch.full((2, 3, 32, 32), 0.2))
    assert masks.mask.shape == (2, 1, 1)
    assert met == {1: "x", 2: "y"}
    assert collate([(eight, mask, {})])[0].dtype == torch.uint8


def test_every_unreadable_image_is_named_before_training(image_folder):
    (image_folder / "part0" / "00.png").write_bytes(b"not an image")
    (image_folder / "part1" / "zz.jpg").write_bytes(b"")
    Image.new("CMYK", (8, 8)).save(image_folder / "part1" / "fine.jpg")
    with pytest.raises(ImageError, match=r"2 of 14 images cannot be used:") as caught:
        pretraining_samples(str(image_folder), (64, 64), 0.6)
    assert "00.png" in str(caught.value)
    assert "zz.jpg" in str(caught.value)


def test_files_of_other_channels_are_all_named_before_training(image_folder):
    with pytest.raises(ImageError, match=r"12 of 12 .*, more than half:") as caught:
        pretraining_samples(str(image_folder), (64, 64), 0.6, in_chans=13)
    assert str(caught.value).count("has 3 channel(s), not the 13 of --in-chans") == 12


def test_image_damaged_behind_its_header_is_named_when_used(image_folder):
    victim = damage(image_folder, "00.png")
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6)
    with pytest.raises(ImageError, match=r"00\.png does not decode"):
        samples[place(samples, victim)]


@pytest.mark.parametrize("damages", [damage, lambda f, n: (f / "part0" / n).write_bytes(b"")])
def test_a_bad_image_is_replaced_by_the_next_good_one(image_folder, damages):
    # last by index, and first: what follows the last is the first, and so the second
    good = pretraining_samples(str(image_folder), (64, 64), 0.6)
    last, first = len(good) - 1, 0
    names = [good.describe(i) for i in (last, first)]
    seed_generators(5)
    expected = good[1]
    (image_folder / "part0/00.png").write_bytes(b"")
    damage(image_folder, names[0].rpartition("/")[2])
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6, skip_bad_images=True)
    seed_generators(5)
    image, mask, met = samples[last]
    assert torch.equal(image, expected[0])
    assert torch.equal(mask, expected[1])
    assert list(met) == [last]
    assert list(samples.bad) == [first]


def test_it_does_not_matter_whether_a_bad_image_was_known(image_folder):
    victim = damage(image_folder, "04.png")
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6, skip_bad_images=True)
    index = place(samples, victim)
    assert not samples.bad
    found = draw(samples, index)
    samples.bad = {index: "known"}
    known = draw(samples, index)
    assert torch.equal(found[0], known[0])
    assert torch.equal(found[1], known[1])
    assert known[2] == {}


def test_replacements_do_not_depend_on_workers(image_folder):
    victim = damage(image_folder, "04.png")
    samples = pretraining_samples(str(image_folder), (32, 32), 0.6, skip_bad_images=True)
    batches = []
    for workers in (0, 2):
        loader = iter(build_loader(samples, BatchOrder(12, 6, seed=0), collate, workers))
        batches.append([next(loader)[1] for _ in range(4)])
    for (images, masks, met), (images_2, masks_2, met_2) in zip(*batches, strict=True):
        assert torch.equal(images, images_2)
        assert torch.equal(masks.mask, masks_2.mask)
        assert met == met_2
    index = place(samples, victim)
    assert sum(index in met for _, _, met in batches[0]) == 2  # once an epoch


def test_more_than_half_bad_images_are_an_error_in_spite_of_skipping(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    for file in files[:7]:
        damage(image_folder, file.name)
    samples = pretraining_samples(str(image_folder), (32, 32), 0.6, skip_bad_images=True)
    assert sorted(place(samples, file) for file in files[:7]) == list(range(7))
    with pytest.raises(ImageError, match=r"half of all images behind it cannot be used"):
        draw(samples, 0)
    for file in files[:7]:
        file.write_bytes(b"")
    with pytest.raises(ImageError, match=r"7 of 12 images cannot be used, more than half"):
        pretraining_samples(str(image_folder), (32, 32), 0.6, skip_bad_images=True)


def test_bad_images_are_listed_once_even_by_a_resumed_run(image_folder, tmp_path):
    reader = pretraining_samples(str(image_folder), (32, 32), 0.6).reader
    for _ in range(2):
        listed = BadImages(tmp_path, reader)
        listed.add({3: "is empty"})
        listed.add({3: "is empty", 5: "is cut off"})
    lines = [line.split("\t") for line in (tmp_path / "bad_images.txt").read_text().splitlines()]
    assert lines == [[reader.name(3), "is empty"], [reader.name(5), "is cut off"]]
    with pytest.raises(ImageError, match=r"7 of 12 images cannot be used, more than half"):
        listed.add(dict.fromkeys(range(7), "is empty"))
