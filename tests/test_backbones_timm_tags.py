"""Every ConvNeXt that timm lists: read as the function that it is, or refused with the reason."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from backbones.checkpoint import build_encoder, open_encoder
from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.key_adapters import from_ours, to_ours
from backbones.weights import sources
from fcmae.classification.head import read_classifier

ROOT = Path(__file__).resolve().parent.parent
script = SimpleNamespace(**runpy.run_path(str(ROOT / "dev" / "write_weights_table.py")))
TAGS = script.tags()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """timm's hub gives stand-ins: the tag's structure, head and configuration, random weights."""

    def create_model(name: str, pretrained: bool, in_chans: int = 3):
        assert pretrained
        assert in_chans == 3
        return made.setdefault(name, script.stand_in(name))

    made: dict = {}
    stand_ins = SimpleNamespace(
        create_model=create_model, is_model=timm.is_model, list_models=timm.list_models
    )
    monkeypatch.setattr(sources, "timm", stand_ins)
    return made


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_read_as_what_it_is_or_refused(tag: str, no_hub) -> None:
    row, source = script.describe(tag), f"timm:{tag}"
    if not row.size:
        assert row.encoder.startswith("refused: ")
        if "xxlarge" not in tag:  # which its channels tell, and a stand-in has others
            with pytest.raises(InputError, match="a ConvNeXt of another kind"):
                open_encoder(source)
        return
    file = open_encoder(source)
    encoder, result = build_encoder(file)
    theirs = no_hub[tag]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.stages(theirs.stem(images))
        actual = encoder.eval().forward_features(images)["stage4"]
    assert result.loaded == result.total
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    # its classifier, whole or not at all
    classifier = read_classifier(source)
    if row.classifier[0].isdecimal():
        whole = ConvNeXt(file.size, num_classes=classifier.rows).eval()
        whole.load_state_dict({**encoder.state_dict(), **classifier.head})
        with torch.no_grad():
            torch.testing.assert_close(whole(images), theirs(images), rtol=1e-3, atol=1e-3)
    else:
        assert classifier.rows == 0
        assert (classifier.head_problem is None) == (row.classifier == "none")
    # how it sees
    cfg = timm.get_pretrained_cfg(tag)
    assert file.numbers("mean") == tuple(cfg.mean)
    assert file.numbers("std") == tuple(cfg.std)
    assert file.numbers("image_size") == tuple((cfg.test_input_size or cfg.input_size)[1:])
    assert json.loads(file.metadata["interpolation"]) == cfg.interpolation
    # every format that it converts to holds all of it
    for target in row.formats:
        written, _ = from_ours(file.tensors, target)
        again = to_ours(written).tensors
        assert all(torch.equal(again[name], t) for name, t in file.tensors.items() if name in again)
        assert {n for n in file.tensors if n.startswith(("stages.", "downs"))} <= again.keys()


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="the page is of timm 1.0.31")
def test_the_page_has_a_row_for_every_tag() -> None:
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert script.table() in page
    assert len(TAGS) == 98


def test_an_xxlarge_is_refused_by_its_shape() -> None:
    with pytest.raises(InputError, match="an xxlarge, whose LayerNorms add 1e-5"):
        to_ours(script.whole_shapes("convnext_xxlarge.clip_laion2b_soup").state_dict())
