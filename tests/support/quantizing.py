"""Sources for `quantize` and `grow_depth`, runs of them that kill themselves, and what a folder holds."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from longcat_ops import LongcatError, LongcatFlashConfig
from longcat_ops.loading.checkpoint import expected_tensors
from longcat_ops.loading.quantize import quantize
from longcat_ops.loading.tensor_file import Layout, NewTensorFile, TensorLayout
from support import checkpoints, models

# Every side of a weight has a ragged last block; kv_a has 5 row blocks, the last half full, as released.
RAGGED = dict(hidden_size=192, kv_lora_rank=568, q_lora_rank=136, expert_ffn_hidden_size=136, ffn_hidden_size=200,
              num_layers=1, n_routed_experts=4, zero_expert_num=2)  # fmt: skip
# 300 MB in bf16, of weights of 17 MB at most.
LARGE = dict(hidden_size=2048, ffn_hidden_size=4096, expert_ffn_hidden_size=1024, num_layers=1, q_lora_rank=512,
             kv_lora_rank=512, n_routed_experts=14, vocab_size=2000)  # fmt: skip
SHARD = 600_000  # cuts the source above into 4 files


def small_source(folder: Path, shards: int = 2) -> Path:
    """A bf16 checkpoint with an MTP head, a fp32 router and small files beside it."""
    config = models.config(**RAGGED)
    tensors = {n: t if "router" in n else t.bfloat16() for n, t in models.tensors(config).items()}
    checkpoints.write(folder, config, tensors, shards)
    (folder / "tokenizer.json").write_text('{"model": "any"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


def large_source(folder: Path, config: LongcatFlashConfig) -> Path:
    """bf16 noise, written piece by piece, so that a file larger than memory can be made. The router is fp32."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    wanted = expected_tensors(config, mtp=False)
    layouts = {
        name: Layout(torch.float32 if ".router." in name else torch.bfloat16, want.shape)
        for name, want in wanted.items()
    }
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8).numpy().data
    with NewTensorFile(folder, "model.safetensors", TensorLayout(layouts)) as file:
        for name, layout in layouts.items():
            for begin in range(0, layout.num_bytes, len(noise)):
                file.write_tensor(name, noise[: layout.num_bytes - begin], begin)
        file.commit()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def events(source: Path, dest: Path, run: Callable = quantize, **options: object) -> int:
    """How many writes, syncs and renames a whole run makes."""
    return _forked(_counting, source, dest, run, options)[1]


def killed(source: Path, dest: Path, event: int, after: bool, run: Callable = quantize, **options: object) -> None:
    """A run that is killed by SIGKILL around its `event`-th write, sync or rename: before it, in the middle of it if it
    is a write, or after it.
    """
    code, _ = _forked(_killing, source, dest, run, options, event, after)
    assert code == -signal.SIGKILL


def limited(source: Path, dest: Path, size: int) -> str:
    """The error of a run whose files may have so many bytes."""
    return _forked(_limited, source, dest, size)[1]


def memory(folder: Path) -> dict[str, object]:
    """What quantising a source of 300 MB takes: growth, of a process that has only imported the package."""
    return _forked(_memory, folder)[1]


def _forked(target: Callable[..., None], *arguments: object) -> tuple[int, object]:
    """Exit code and result of a process, from a server that has imported everything and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longcat_ops.loading.quantize", "support.quantizing"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_sent, args=(send, target, *arguments))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        found = None
    process.join()
    return process.exitcode, found


def _sent(send: object, target: Callable[..., object], *arguments: object) -> None:
    send.send(target(*arguments))


def _counting(source: Path, dest: Path, run: Callable, options: dict) -> int:
    counted = 0

    def count(call: Callable, arguments: tuple) -> object:
        nonlocal counted
        counted += 1
        return call(*arguments)

    _watch(count)
    run(source, dest, **options)
    return counted


def _killing(source: Path, dest: Path, run: Callable, options: dict, event: int, after: bool) -> None:
    left = event

    def around(call: Callable, arguments: tuple) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            if after:
                call(*arguments)
            elif call in (real["write"], real["pwrite"]):
                call(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    real = _watch(around)
    run(source, dest, **options)


def _watch(around: Callable[[Callable, tuple], object]) -> dict[str, Callable]:
    """Calls of the system that change the disk go through `around`; the calls themselves."""
    real = {name: getattr(os, name) for name in ("write", "pwrite", "fsync", "replace")}
    for name, call in real.items():
        setattr(os, name, lambda *arguments, call=call: around(call, arguments))
    return real


def _limited(source: Path, dest: Path, size: int) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        quantize(source, dest)
    except LongcatError as error:
        return str(error)
    return ""


def _memory(folder: Path) -> dict[str, object]:
    config = models.config(**LARGE)
    source = large_source(folder / "bf16", config)
    largest = max(2 * torch.Size(want.shape).numel() for want in expected_tensors(config, mtp=False).values())
    before, most = anonymous(), 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, anonymous())

    made = quantize(source, folder / "fp8", progress=look)
    return {
        "source": made.bytes_read, "made": made.bytes_written, "largest": largest, "growth": most - before,
        "compiler": "torch._dynamo" in sys.modules,
    }  # fmt: skip


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024
