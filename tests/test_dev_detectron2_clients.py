"""The script that runs detectron2's own scripts: its configs build, and a wrong folder is said."""

# ruff: noqa: E402 - the skip comes before the imports
from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config

from backbones.d2_adapter import add_convnext_config

SCRIPT = Path(__file__).resolve().parent.parent / "dev" / "detectron2_clients.py"


@pytest.fixture(scope="module")
def clients():
    name = "detectron2_clients"
    sys.modules[name] = type(sys)(name)  # dataclasses look their module up
    yield runpy.run_path(str(SCRIPT), run_name=name)
    del sys.modules[name]


@pytest.mark.parametrize("model", ["ConvNeXt V2", "R50"])
def test_the_configs_of_both_models_build(clients, model, tmp_path):
    files = clients["write_configs"](tmp_path, model, 5, 6)
    assert {client.config for client in clients["CLIENTS"]} <= {*files, ""}
    for name in ("rcnn", "pointrend", "deeplab"):
        cfg = get_cfg()
        add_convnext_config(cfg)
        if name == "pointrend":
            add_pointrend_config(cfg)
        if name == "deeplab":
            add_deeplab_config(cfg)
        cfg.merge_from_file(str(files[name]))
        cfg.MODEL.DEVICE = "meta"
        assert sum(p.numel() for p in build_model(cfg).parameters()) > 1e6
    lazy = LazyConfig.load(str(files["lazy"]))
    assert lazy.dataloader.train.dataset.names == "clients_train"


def test_a_folder_that_is_no_checkout_is_one_message(run_tool, tmp_path):
    done = run_tool("detectron2_clients", tmp_path, "--output-dir", tmp_path / "out")
    assert done.code == 1
    assert "no checkout of detectron2: it has no tools/train_net.py" in done.err
