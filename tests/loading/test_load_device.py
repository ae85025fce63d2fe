"""Every way to make a model refuses a device that this machine lacks, before it reads a weight."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.model.source import RandomSource, StateDictSource
from support import checkpoints, models

CONFIG = models.config(num_layers=1)


@pytest.fixture(params=["from_pretrained", "from_state_dict", "random"])
def make(request, tmp_path, monkeypatch):
    """A function that makes a model on a device and fails if it reads a weight."""
    tensors = models.tensors(CONFIG)
    checkpoints.write(tmp_path, CONFIG, tensors)

    def fetch(self, name, shape):
        raise AssertionError(f"{name} was read before the device was looked at")

    for source in (CheckpointSource, StateDictSource, RandomSource):
        monkeypatch.setattr(source, "fetch", fetch)
    return {
        "from_pretrained": lambda device: LongcatFlashForCausalLM.from_pretrained(tmp_path, device=device),
        "from_state_dict": lambda device: LongcatFlashForCausalLM.from_state_dict(CONFIG, tensors, device=device),
        "random": lambda device: LongcatFlashForCausalLM.random(CONFIG, device=device),
    }[request.param]


PREFIX = "LongcatFlashForCausalLM: argument `device` is "


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", torch.device("cuda"), torch.device("cuda", 1)])
def test_without_a_gpu(make, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LongcatUnsupportedError) as caught:
        make(device)
    assert str(caught.value) == (
        f"{PREFIX}'{device}', expected cpu: torch finds no CUDA device.\n  fix: see `python -m longcat_ops doctor`"
    )


def test_a_gpu_that_is_not_there(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LongcatUnsupportedError, match=f"{PREFIX}'cuda:2', expected cpu, or cuda:0 .. cuda:1"):
        make("cuda:2")
    with pytest.raises(AssertionError, match="was read before"):  # this device exists
        make("cuda:1")


@pytest.mark.parametrize("device", ["mps", "xpu", "vulkan", torch.device("hpu")])
def test_kinds_that_the_ops_do_not_run_on(make, device):
    with pytest.raises(LongcatUnsupportedError, match=f"{PREFIX}'{device}', expected cpu or cuda"):
        make(device)


@pytest.mark.parametrize("device", ["toaster", "", "cuda:x", "cpu:"])
def test_what_is_no_device(make, device):
    with pytest.raises(LongcatShapeError, match=f"{PREFIX}{device!r}, expected cpu, cuda or cuda:N"):
        make(device)


@pytest.mark.parametrize("device", [None, 0, ["cpu"], torch.float32])
def test_what_is_no_name_of_a_device(make, device):
    with pytest.raises(LongcatShapeError, match=f"{PREFIX}of type {type(device).__name__}, expected a torch.device"):
        make(device)
