"""Embeddings, probes and choices, against scikit-learn, naive loops and planted truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from backbones.checkpoint import read_source, save_encoder
from backbones.convnext import build_convnext
from fcmae.classification.data import labelled_data
from fcmae.features.choose import choose, k_centre_greedy, k_means, typicality
from fcmae.features.embeddings import embed, nearest
from fcmae.features.probes import knn, linear_probe, patch_labels, probe_images, probe_patches
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from images.statistics import IMAGENET


def planted(classes, per_class=30, channels=12, spread=1.5, seed=0):
    """Features around a centre for each class, and their classes, shuffled."""
    generator = np.random.default_rng(seed)
    centres = 2 * generator.normal(size=(classes, channels))
    labels = np.repeat(np.arange(classes), per_class)
    features = centres[labels] + spread * generator.normal(size=(len(labels), channels))
    features *= generator.uniform(0.01, 100, channels)  # channels of very different scales
    order = generator.permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


@pytest.mark.parametrize("classes", [2, 5])
def test_probes_are_scikit_learns_on_the_same_features(classes):
    features, labels = planted(classes)
    train, test = features[: 20 * classes], features[20 * classes :]
    known = labels[: 20 * classes]
    theirs = KNeighborsClassifier(7, metric="cosine").fit(train.astype(np.float64), known)
    assert (knn(train, known, test, 7) == theirs.predict(test.astype(np.float64))).all()

    scaler = StandardScaler().fit(train.astype(np.float64))
    reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(train.astype(np.float64)), known)
    probe = linear_probe(train, known, 0.5)
    logits = torch.from_numpy(probe.logits(test))
    expected = reference.predict_proba(scaler.transform(test.astype(np.float64)))
    np.testing.assert_allclose(logits.softmax(-1).numpy(), expected, atol=1e-4)
    assert (probe.predict(test) == reference.predict(scaler.transform(test))).all()


def test_a_constant_channel_does_no_harm_to_the_linear_probe():
    features, labels = planted(3)
    constant = np.concatenate((features, np.full((len(features), 1), 7, np.float32)), 1)
    ours, without = linear_probe(constant, labels), linear_probe(features, labels)
    np.testing.assert_allclose(ours.weight[:, :-1], without.weight, atol=1e-5)
    np.testing.assert_allclose(ours.weight[:, -1], 0, atol=1e-6)


def test_embeddings_are_the_pooled_stage_and_neighbours_are_those_of_a_loop():
    encoder = build_convnext("convnextv2_atto").train()
    images = torch.randn(5, 3, 64, 96)
    found = embed(encoder, images.split(2), "stage3", "max")
    with torch.no_grad():
        stage = encoder.eval().forward_features(images)["stage3"]
    np.testing.assert_allclose(found, stage.amax((2, 3)).numpy(), rtol=1e-5, atol=1e-6)
    rows, similarities = nearest(found, found, 3, same=True)
    for query in range(5):
        cosines = [
            -np.inf if query == other else float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for other, (a, b) in enumerate((found[query].astype(float), row) for row in found)
        ]
        assert rows[query].tolist() == np.argsort(cosines)[::-1][:3].tolist()
        np.testing.assert_allclose(similarities[query], sorted(cosines)[::-1][:3], atol=1e-6)
    with pytest.raises(ValueError, match=r"stage is 'stage5' and pooling 'mean'"):
        embed(encoder, [images], "stage5")


def test_k_centre_greedy_is_the_naive_one_and_within_twice_the_best_cover():
    features = np.random.default_rng(0).normal(size=(12, 3))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def radius(centres):
        return max(min(np.linalg.norm(x - unit[c]) for c in centres) for x in unit)

    chosen = [4, *k_centre_greedy(features, 3, labelled=[4])]
    naive = [4]
    for _ in range(3):
        far = [min(np.linalg.norm(x - unit[c]) for c in naive) for x in unit]
        naive.append(int(np.argmax(far)))
    assert chosen == naive
    best = min(radius([4, a, b, c]) for a in range(12) for b in range(a) for c in range(b))
    assert radius(chosen) <= 2 * best + 1e-9


def test_typicality_takes_one_of_each_planted_cluster_and_none_that_is_labelled():
    generator = np.random.default_rng(0)
    centres = np.eye(6)
    labels = np.repeat(np.arange(6), 15)
    features = centres[labels] + 0.05 * generator.normal(size=(90, 6))
    assert sorted(labels[typicality(features, 6)]) == list(range(6))
    chosen = typicality(features, 4, labelled=[0, 15])  # of clusters 0 and 1
    assert sorted(labels[chosen]) == [2, 3, 4, 5]
    clusters = k_means(features, 6)
    assert all(len(set(clusters[labels == label])) == 1 for label in range(6))
    # the most typical lies deepest in its cluster
    row = typicality(features[:15], 1)[0]
    distances = [np.linalg.norm(features[:15] - x, axis=1).mean() for x in features[:15]]
    assert row == int(np.argmin(distances))


def test_choices_take_each_row_once_and_say_how_many_are_left():
    features = np.ones((6, 2))  # all alike: nothing to tell them apart
    for by in ("k-centre", "typicality", "random"):
        assert sorted(choose(by, features, 4, [1, 3])) == [0, 2, 4, 5]
        with pytest.raises(ValueError, match="5 images are to be chosen, and 4 are not yet"):
            choose(by, features, 5, [1, 3])


def test_patches_have_their_most_frequent_class_and_the_dense_probe_is_scikit_learns():
    mask = np.full((8, 13), 255, np.uint8)
    mask[:4, :4] = [[1, 1, 2, 2]] * 4
    mask[4:, :4] = 2
    mask[:4, 4:8] = 7
    assert patch_labels(mask, "stage1").tolist() == [[1, 7, 255], [2, 255, 255]]
    features, labels = planted(3, per_class=40)
    grids = [
        (features[k : k + 12].reshape(3, 4, -1), labels[k : k + 12].reshape(3, 4).copy())
        for k in range(0, 120, 12)
    ]
    grids[0][1][0, 0] = 255
    found = probe_patches(grids[:6], grids[6:])
    x, y = features[1:72], labels[1:72]
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
    said, truth = reference.predict(scaler.transform(features[72:])), labels[72:]
    assert found["accuracy"] == pytest.approx(100 * (said == truth).mean())
    assert found["miou"] == pytest.approx(100 * jaccard_score(truth, said, average="macro"))


def test_the_tool_writes_features_probes_and_the_next_images(run_tool, tmp_path):
    generator = np.random.default_rng(0)
    for name, base in (("dark", 60), ("light", 190)):
        for folder in ("data", "masks"):
            (tmp_path / folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(base - 50, base + 50, (64, 64, 3), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            pixels[:, 32:], mask[:, 32:] = 255 - pixels[:, 32:], 1
            Image.fromarray(pixels).save(tmp_path / f"data/{name}/{name}{number}.png")
            Image.fromarray(mask).save(tmp_path / f"masks/{name}{number}.png")
    torch.manual_seed(0)
    save_encoder(build_convnext("convnextv2_atto"), tmp_path / "e.safetensors", {})
    (tmp_path / "done.txt").write_text("dark0.png\nlight/light1.png\n")
    command = ["--encoder", tmp_path / "e.safetensors", "--data", tmp_path / "data"]
    command += ["--output", tmp_path / "f.npz", "--image-size", 64, "--device", "cpu"]
    more = ["--probe", "--masks", tmp_path / "masks", "--stage", "stage1"]
    more += ["--choose", 3, "--labelled", tmp_path / "done.txt"]
    result = run_tool("embed", *command, *more)
    assert result.code == 0, result.err
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert archive["features"].shape == (12, 40)
        assert archive["labels"].tolist() == [0] * 6 + [1] * 6
        assert archive["neighbours"].shape == (12, 10)
        assert json.loads(str(archive["options"]))["stage"] == "stage1"
        names = archive["names"].tolist()
    listed = (tmp_path / "f_next.txt").read_text().splitlines()
    assert len(set(listed)) == 3
    assert set(listed) <= set(names)
    assert not {name for name in listed if name.endswith(("dark0.png", "light1.png"))}
    page = (tmp_path / "f_next.html").read_text()
    assert page.count("<img") == 3
    assert "linear" in result.out
    assert "miou" in result.out
    (tmp_path / "done.txt").write_text("0.png\nno.png\n")
    result = run_tool("embed", *command, "--choose", 3, "--labelled", tmp_path / "done.txt")
    assert result.code == 1
    assert "0.png is none of the images; no.png is none" in result.err


def test_a_probe_during_pretraining_is_recorded_and_changes_nothing(tmp_path):
    generator = np.random.default_rng(0)
    for name, base in (("dark", 60), ("light", 190)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(base - 50, base + 50, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/{name}/{number}.png")
    values = {
        "model": "convnextv2_atto",
        "data": str(tmp_path / "data"),
        "image_size": (64, 64),
        "decoder_dim": 16,
        "batch_size": 4,
        "max_steps": 2,
        "workers": 0,
        "panel_every": 1,
        "device": "cpu",
        "trackers": (),
    }
    probed = {"output_dir": tmp_path / "probed", "probe": str(tmp_path / "data")}
    paths = [
        pretrain(PretrainOptions(**values, **more))
        for more in ({"output_dir": tmp_path / "plain"}, probed)
    ]
    plain, with_probe = (read_source(path)[0] for path in paths)
    assert all(torch.equal(plain[name], with_probe[name]) for name in plain)
    lines = [json.loads(line) for line in (tmp_path / "probed/metrics.json").open()]
    found = [line for line in lines if "probe/knn" in line]
    assert [line["iteration"] for line in found] == [1, 2]
    assert all(0 <= line[f"probe/{kind}"] <= 100 for line in found for kind in ("knn", "linear"))
    # the last is that of the encoder which was written
    encoder = build_convnext("convnextv2_atto")
    encoder.load_state_dict(with_probe)
    data = labelled_data(str(tmp_path / "data"), val_fraction=0.3)
    again = probe_images(encoder, data, IMAGENET, (64, 64))
    assert again == {kind: found[-1][f"probe/{kind}"] for kind in ("knn", "linear")}
