"""The choice of kernels: what takes Triton's, and what is said where they cannot run."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from backbones import kernels
from backbones.kernels import triton_runs, use_kernels, why_no_triton
from fcmae.pretrain_options import PretrainOptions

CUDA = torch.device("cuda")
X = torch.zeros(1)


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    """As on a machine with Triton that compiles: no interpreter, a C compiler."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(kernels, "_triton_version", lambda: (3, 9))
    kernels._say_once.cache_clear()


class OnGpu:
    """All that the choice looks at of a tensor on a GPU."""

    device = CUDA


def test_auto_takes_triton_on_a_gpu_alone(monkeypatch):
    assert triton_runs(OnGpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not triton_runs(X)


def test_torch_is_never_triton_and_the_choice_ends_with_its_block():
    def fail():
        with use_kernels("torch"):
            assert not triton_runs(OnGpu)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert triton_runs(OnGpu)


def test_triton_on_a_cpu_is_an_error_unless_interpreted(monkeypatch):
    with use_kernels("triton"):
        with pytest.raises(ValueError, match="needs a CUDA GPU and this runs on cpu; use 'auto'"):
            triton_runs(X)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert triton_runs(X)


@pytest.mark.parametrize(
    ("version", "compiler", "problem"),
    [
        (None, "gcc", "Triton is not installed"),
        ((3, 2), "gcc", "Triton is 3.2, older than 3.3"),
        ((3, 9), None, "needs a C compiler"),
    ],
)
def test_auto_falls_back_on_a_gpu_and_says_why_once(
    monkeypatch, caplog, version, compiler, problem
):
    monkeypatch.setattr(kernels, "_triton_version", lambda: version)
    if compiler is None:
        monkeypatch.delenv("CC")
        monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not triton_runs(OnGpu)
        assert not triton_runs(OnGpu)
    assert len(caplog.records) == 1
    assert problem in caplog.text
    with use_kernels("triton"), pytest.raises(ValueError, match=problem):
        triton_runs(OnGpu)


def test_version_is_read_from_the_package_or_none(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._triton_version.cache_clear()
    assert "not installed" in str(why_no_triton(CUDA))
    kernels._triton_version.cache_clear()


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="kernels is 'cuda'; allowed: auto, triton, torch, fused"):
        use_kernels("cuda").__enter__()


def test_pretraining_refuses_triton_on_a_cpu_with_all_its_other_problems():
    with pytest.raises(ValueError, match=r"base_lr is 0.*kernels is 'triton', but Triton needs"):
        PretrainOptions(
            model="m", data="d", output_dir="o", base_lr=0, kernels="triton", device="cpu"
        )
    PretrainOptions(model="m", data="d", output_dir="o", kernels="auto", device="cpu")
