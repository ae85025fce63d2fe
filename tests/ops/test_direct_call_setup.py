"""Direct calls: what they keep, threads, when they are off, and what they ask of torch before the first one."""

from __future__ import annotations

import sys
import threading
import weakref

import pytest
import torch

import longcat_ops
from longcat_ops import _environment, _library
from longcat_ops.ops import direct
from longcat_ops.testing.op_results import bits
from support.direct_calls import MAKERS, by_torch, only_on_kernels

pytestmark = only_on_kernels


def test_calls_keep_no_tensor():
    args, out = MAKERS["bf16_gemm_nt"](1), torch.zeros(1, 24, dtype=torch.bfloat16)
    counts = [sys.getrefcount(t) for t in (*args, out)]
    for _ in range(100):
        made = longcat_ops.bf16_gemm_nt(*args)
        longcat_ops.bf16_gemm_nt(*args, out)
        assert direct.caller("bf16_gemm_nt")(args[0], args[1][:, 8:], 1, out) is False
    assert [sys.getrefcount(t) for t in (*args, out)] == counts and sys.getrefcount(made) == 2
    gone = weakref.ref(made)
    del made
    assert gone() is None


def test_other_threads_run_during_a_call():
    a, b = torch.ones(512, 1024), torch.ones(2048, 1024)
    out, started, beats = torch.empty(512, 2048), threading.Event(), 0

    def work():
        started.set()
        assert direct.caller("bf16_gemm_nt")(a, b, 1, out)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    try:
        sys.setswitchinterval(1000)  # nobody has to hand the GIL over: the call must do it by itself
        thread.start()
        started.wait()
        while thread.is_alive():
            beats += 1
            thread.join(0.001)
    finally:
        sys.setswitchinterval(interval)
    assert beats > 1 and (out == 1024).all()


def test_calls_of_many_threads():
    args = [MAKERS["bf16_gemm_nt"](rows) for rows in range(1, 9)]
    expected = [bits(by_torch("bf16_gemm_nt", *one)) for one in args]
    failures = []

    def work(i):
        for _ in range(200):
            if bits(longcat_ops.bf16_gemm_nt(*args[i])) != expected[i]:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(args))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_switched_off_leaves_calls_to_torch():
    call, arguments = direct.caller("add_rows"), (torch.ones(2, 8), torch.ones(2, 8), torch.zeros(2, 8))
    with direct.switched_off():
        assert call(*arguments) is False
        with direct.switched_off():
            assert call(*arguments) is False
        assert call(*arguments) is False and not arguments[-1].any()
    assert call(*arguments) is True


class Native:
    """`_C` as `direct` sees it, for a torch whose tensors lie elsewhere in their Python objects."""

    def __init__(self, fits):
        self.fits, self.on = fits, None

    def begins_with_tensor(self, tensor, address):
        return self.fits and _library.load().begins_with_tensor(tensor, address)

    def set_torch(self, **names):
        assert all(callable(f) for f in (*names["watchers"], *names["oddities"], names["is_grad_enabled"]))

    def enable_direct_calls(self, on):
        self.on = on


def test_a_torch_that_does_not_fit_gets_every_call(monkeypatch):
    connect = direct._connect.__wrapped__
    native = Native(fits=True)
    assert connect(native) and native.on is True
    assert not connect(Native(fits=False))
    x = torch.ones(2, 8)
    assert _library.load().begins_with_tensor(x, x._cdata) and not _library.load().begins_with_tensor(x, x.data_ptr())
    for owner, name in ((torch._C._dynamo.guards, "_empty_strided_cpu"), (torch._C, "_len_torch_dispatch_stack")):
        with monkeypatch.context() as patch:
            patch.delattr(owner, name)
            native = Native(fits=True)
            assert not connect(native) and native.on is None
    for backend in ("reference", "emu", "cuda"):
        with monkeypatch.context() as patch:
            patch.setitem(_environment.values, "LONGCAT_OPS_BACKEND", backend)
            assert not connect(Native(fits=True))
    with monkeypatch.context() as patch:
        patch.setattr(direct, "_connect", lambda native: False)
        assert direct.caller("add_rows")(x, x, torch.zeros(2, 8)) is False
        assert direct.maker("add_rows", (0, 0), (0, 1), 0)(x, x) is None


def test_an_op_without_a_kernel_is_left_to_torch():
    assert _library.load().direct_call("fused_moe") is None
    assert direct.caller("fused_moe")() is False
    with pytest.raises(ValueError, match="moe_plan has several outputs"):
        _library.load().direct_maker("moe_plan", rows=(0, 0), columns=(0, 1), dtype=0)
