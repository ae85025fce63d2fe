"""from_pretrained(precision="fp8") on every backend of CPU tensors: projections run as FP8 products and experts as the
FP8 chain, each as near to fp64 as float32 sums allow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat_ops import Routing
from longcat_ops.reference.gemm import _reorder
from support import checkpoints, models
from support.chain_oracle import quantised_chain, widened, worst
from support.emulated_kernels import library  # noqa: F401  (fixture: the emulator is built)
from support.grouped import assert_close, gemm, wide

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("reference", "cpu", "emu")
LAYERS = 1
PASSES = 2
PRODUCTS = ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_masked")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The calls and logits of each backend, run in its own process on the same bf16 checkpoint."""
    folder = tmp_path_factory.mktemp("fp8")
    config = models.config(hidden_size=160, num_layers=LAYERS, expert_ffn_hidden_size=136, num_nextn_predict_layers=0)
    tensors = {name: t.bfloat16() for name, t in models.tensors(config, mtp=False).items()}
    checkpoints.write(folder / "checkpoint", config, tensors)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LONGCAT_OPS_")}
    clean |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), clean.get("PYTHONPATH", "")]),
    }
    running = {}
    for backend in BACKENDS:
        command = [sys.executable, "tests/support/fp8_model_calls.py", folder / "checkpoint", folder / f"{backend}.pt"]
        running[backend] = subprocess.Popen(
            command, cwd=ROOT, env=clean | {"LONGCAT_OPS_BACKEND": backend}, stderr=subprocess.PIPE, text=True
        )
    for process in running.values():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]
    return {backend: torch.load(folder / f"{backend}.pt") for backend in BACKENDS}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_projection_and_every_expert_is_fp8(found: dict, backend: str) -> None:
    """Every projection and expert runs in FP8, except kv_b, which stays dense in two halves; the router is none."""
    one = found[backend]
    names = [name for name, _ in one["calls"]]
    assert one["backend"] == backend
    assert len(one["fp8"]) == 14 * LAYERS and all(one["fp8"])
    # Norms and SwiGLU quantise for the products behind them; what attention gives is quantised by itself.
    for op, each in (("rms_norm_quant_fp8", 6), ("silu_and_mul_quant_fp8", 2), ("per_token_group_quant_fp8", 2)):
        assert names.count(op) == each * LAYERS * PASSES
    assert all(names.count(product) == 14 * LAYERS for product in PRODUCTS)  # of the prefill, of the decode step
    assert names.count("fused_moe") == names.count("moe_route") == LAYERS * PASSES
    for _, arguments in (call for call in one["calls"] if call[0] == "fused_moe"):
        assert [arguments[i].dtype for i in (4, 5, 6, 7)] == [torch.float8_e4m3fn, torch.float32] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_product_is_within_its_bound(found: dict, backend: str) -> None:
    for a, sa, b, sb, *_, out in (args for name, args in found[backend]["calls"] if name in PRODUCTS):
        a, sa, b, sb, out = (t if t.dim() == 2 else t.squeeze(0) for t in (a, sa, b, sb, out))
        assert_close(out, *gemm((a, sa), wide(b, sb, block_rows=128), False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_expert_layer_is_within_its_bound(found: dict, backend: str) -> None:
    for x, ids, weights, zero_weight, q, s, down, ds, *_, out in (
        args for name, args in found[backend]["calls"] if name == "fused_moe"
    ):
        rest = torch.zeros(1)
        experts = widened(_reorder(q, s, undo=True), (down, ds))
        value, limit = quantised_chain(x, Routing(ids, weights, zero_weight, rest, rest, rest), experts, False)
        assert worst((out.double() - value).abs(), limit) <= 1


def test_the_backends_differ_by_less_than_fp8_does(found: dict) -> None:
    """Other orders of summation change logits less than the precision does, and the two precisions do differ."""
    logits = {backend: one["logits"] for backend, one in found.items()}
    fp8 = (logits["cpu"] - found["cpu"]["dense_logits"]).norm()
    assert fp8 > 0.01 * logits["cpu"].norm()
    for backend in BACKENDS:
        assert (logits[backend] - logits["cpu"]).norm() <= 0.25 * fp8
