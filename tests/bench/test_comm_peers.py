"""The peers of the bench of collectives, over stand-ins for what needs GPUs: how each is called, and when it is not."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from comm.cells import KIB, KINDS, MIB, NORM, Cell, Inputs
from peers import mscclpp, nccl, nccl_calls, torch_symmetric
from peers.comm_ours import Ours

HOST = SimpleNamespace(on_gpus=False, device=torch.device("cpu"), rank=0, ranks=2, control="control")
GPUS = SimpleNamespace(on_gpus=True, device=torch.device("cpu"), rank=0, ranks=2, control="control")
EVEN = Cell("all_gather", "even", 4096, "graph", 2)
UNEVEN = Cell("all_gather", "ragged", 4096, "graph", 2)


def test_without_gpus_every_other_peer_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    kinds = (nccl.Registered, nccl.FourBlocks, torch_symmetric.Multimem, torch_symmetric.CopyEngines, mscclpp.Mscclpp)
    assert {kind(HOST).absent() for kind in kinds} == {"needs a GPU"}
    assert nccl.TorchGroup(HOST).absent() == Ours(HOST).absent() == ""


def test_names_and_what_they_lack() -> None:
    kinds = (nccl.Registered, nccl.FourBlocks, torch_symmetric.CopyEngines, torch_symmetric.Multimem, mscclpp.Mscclpp)
    everything = [nccl.TorchGroup(GPUS), nccl.TorchGroup(GPUS, padded=True), *(kind(GPUS) for kind in kinds)]
    cells = [Cell(collective, rows, 4096, "graph", 2) for collective, rows in KINDS]
    has = {one.name: {(cell.collective, cell.rows) for cell in cells if not one.lacks(cell)} for one in everything}
    even, all_kinds = {(c, rows) for c, rows in KINDS if rows == "even"}, set(KINDS)
    assert has == {
        "NCCL": all_kinds, "NCCL, padded": all_kinds - even, "NCCL registered": even, "NCCL, 4 CTAs": even,
        "torch copy engines": {("all_gather", "even")},
        "torch multimem": {("all_reduce", "even"), ("all_gather", "even")},
        "MSCCL++": {("all_reduce", "even"), ("all_gather", "even")},
    }  # fmt: skip
    assert nccl.TorchGroup(HOST).name == "gloo" and nccl.TorchGroup(HOST).lacks(UNEVEN)
    assert [one.symmetric for one in everything] == [False, False, True, False, True, True, False]


def caps(**given: Any) -> SimpleNamespace:
    found = {"num_blocks": 4, "graphs": True, "symmetric": True} | given
    return SimpleNamespace(caps=SimpleNamespace(**found), backend="p2p")


def test_ours_on_ordinary_tensors_shares_the_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Ours(GPUS)
    ours.comm = caps()
    other = Ours(GPUS, ours)
    other.open()
    assert other.comm is ours.comm and (ours.blocks, ours.captures()) == ("4", "")
    norm = Cell(NORM, "even", 4096, "graph", 2)
    assert (bool(ours.lacks(norm)), bool(other.lacks(norm)), bool(ours.lacks(EVEN))) == (True, False, False)
    ours.comm = caps(num_blocks=0, graphs=False, symmetric=False)
    assert ours.blocks == "none: rung p2p"
    assert "cannot be captured" in ours.captures() and "no memory" in ours.lacks(EVEN)


class Backend:
    """Notes the order of what a pool is used for."""

    mem_allocator = "allocator"

    def __init__(self) -> None:
        self.did: list[str] = []

    def register_mem_pool(self, pool: Any, symm: bool = False) -> None:
        self.did.append(f"registers {pool}, symm {symm}")

    def deregister_mem_pool(self, pool: Any) -> None:
        self.did.append(f"deregisters {pool}")


def test_buffers_are_allocated_before_their_pool_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()

    class Pool:
        def __init__(self, allocator: str) -> None:
            backend.did.append(f"pool of {allocator}")

        def __str__(self) -> str:
            return "pool"

    class Use:
        def __init__(self, pool: Pool) -> None: ...

        def __enter__(self) -> None:
            backend.did.append("allocates")

        def __exit__(self, *_: object) -> None: ...

    group = SimpleNamespace(_get_backend=lambda device: backend)
    monkeypatch.setattr(dist, "new_group", lambda **_: group)
    monkeypatch.setattr(dist, "all_reduce", lambda x, group: backend.did.append("connects"))
    monkeypatch.setattr(torch.cuda, "MemPool", Pool)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", Use)
    monkeypatch.setattr(nccl, "MOST_BYTES", 8192)
    peer = nccl.Registered(GPUS)
    peer.open()
    assert backend.did == ["connects", "pool of allocator", "allocates", "registers pool, symm True"]
    x, out = peer.empty((4, 8), "in"), peer.empty(EVEN.shape, "out")
    assert (x.dtype, x.shape, out.shape) == (torch.bfloat16, (4, 8), EVEN.shape)
    assert x.untyped_storage().nbytes() == 8192 and x.data_ptr() != out.data_ptr()
    peer.close()
    assert backend.did[-1] == "deregisters pool"


def test_the_configuration_of_a_call_has_the_layout_of_nccl() -> None:
    """As nccl.h of 2.31.2 has it: 64 bytes, fields at these places."""
    kind = nccl_calls.CollConfig
    places = {name: getattr(kind, name).offset for name, *_ in kind._fields_}
    assert ctypes.sizeof(kind) == 64 and places == {
        "size": 0, "magic": 8, "version": 12, "ext": 16, "minCTAs": 24, "maxCTAs": 28, "nvlsCTAs": 32,
        "cgaClusterSize": 36, "algSelection": 40, "forceAlgSelection": 48, "CTAPolicy": 52, "userProfilerTag": 56,
    }  # fmt: skip
    made = kind.of_blocks(4)
    assert (made.size, made.magic, made.version, made.ext, made.algSelection) == (64, 0xCAFEBEEF, 23102, None, None)
    assert (made.minCTAs, made.maxCTAs, made.nvlsCTAs) == (4, 4, 4)
    assert (made.cgaClusterSize, made.CTAPolicy) == (-(2**31), -(2**31))
    assert (made.forceAlgSelection, made.userProfilerTag) == (1, 0)


def fake_nccl(version: int, names: tuple[str, ...] = nccl_calls.NAMES, status: int = 0) -> Any:
    calls: list[tuple[str, list[Any]]] = []

    def get_version(number: Any) -> int:
        number._obj.value = version
        return 0

    def function(name: str) -> Any:
        def call(*arguments: Any) -> int:
            calls.append((name, [getattr(a, "value", None) for a in arguments[:-1]] + [arguments[-1]._obj.maxCTAs]))
            return status

        return call

    return SimpleNamespace(ncclGetVersion=get_version, calls=calls, **{name: function(name) for name in names})


def test_configured_calls() -> None:
    library = fake_nccl(23102)
    calls = nccl_calls.ConfiguredCalls(library, 77, 4)
    x, own = torch.zeros(24, dtype=torch.bfloat16), torch.zeros(12, dtype=torch.bfloat16)
    calls.all_reduce(x)
    calls.reduce_scatter(own, x)
    calls.all_gather(x, own)
    calls.broadcast(x)
    big, small = x.data_ptr(), own.data_ptr()
    assert library.calls == [
        ("ncclAllReduceConfig", [big, big, 24, 9, 0, 77, None, 4]),
        ("ncclReduceScatterConfig", [big, small, 12, 9, 0, 77, None, 4]),
        ("ncclAllGatherConfig", [small, big, 12, 9, 77, None, 4]),
        ("ncclBroadcastConfig", [big, big, 24, 9, 0, 77, None, 4]),
    ]
    with pytest.raises(RuntimeError, match="ncclAllReduceConfig returned 5"):
        nccl_calls.ConfiguredCalls(fake_nccl(23102, status=5), 77, 4).all_reduce(x)


def test_when_calls_can_be_configured() -> None:
    assert nccl_calls.missing(fake_nccl(23102)) == nccl_calls.missing(fake_nccl(23206)) == ""
    assert nccl_calls.missing(fake_nccl(23007)) == "NCCL 23007 is older than 23102"
    lacking = fake_nccl(23102, nccl_calls.NAMES[:3])
    assert nccl_calls.missing(lacking) == "NCCL 23102 does not export ncclBroadcastConfig"


def test_4_blocks_by_a_communicator_where_calls_cannot_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict] = []
    options = SimpleNamespace(config=SimpleNamespace(min_ctas=0, max_ctas=0))
    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=lambda: options), raising=False)
    monkeypatch.setattr(dist, "new_group", lambda **given: made.append(given))
    monkeypatch.setattr(nccl_calls, "missing", lambda: "NCCL 22705 is older than 23102")
    peer = nccl.FourBlocks(GPUS)
    peer.open()
    assert made[0]["pg_options"] is options and (options.config.min_ctas, options.config.max_ctas) == (4, 4)
    assert peer.how() == "min_ctas = max_ctas = 4 of a communicator, since NCCL 22705 is older than 23102"
    peer.calls = SimpleNamespace(all_reduce=lambda x: x.mul_(2))
    x = torch.ones(3)
    peer.reduce(x)
    assert x.tolist() == [2.0] * 3 and peer.how() == "ncclCollConfig_t of each call"


@pytest.mark.parametrize("to_all", [True, False])
def test_copy_engines(monkeypatch: pytest.MonkeyPatch, to_all: bool) -> None:
    """The output of the caller is used where torch has an op for that and the ranks have multicast."""
    called: list[str] = []

    def into(x: torch.Tensor, group: str, out: torch.Tensor) -> torch.Tensor:
        called.append("to all")
        return out.copy_(torch.cat([x, x + 1]))

    def each(x: torch.Tensor, group: str) -> torch.Tensor:
        called.append("from each")
        return torch.cat([x, x + 1])

    ops = {torch_symmetric.FROM_EACH: each, torch_symmetric.TO_ALL: into}
    monkeypatch.setattr(torch.ops, "symm_mem", SimpleNamespace(**ops))
    monkeypatch.setattr(torch.ops, "_c10d_functional", SimpleNamespace(wait_tensor=lambda x: x))
    peer = torch_symmetric.CopyEngines(GPUS)
    peer.group_name, peer.handle = "group", SimpleNamespace(multicast_ptr=64 * to_all)
    peer._buffers = {role: torch.zeros(4096, dtype=torch.bfloat16) for role in ("in", "out")}
    inputs = Inputs.of(EVEN, 0, "cpu")
    call = peer.prepare(EVEN, inputs)
    call.fill()
    call.run()
    assert called == ["to all" if to_all else "from each"]
    assert torch.equal(call.result(), torch.cat([inputs.x, inputs.x + 1])) and call.result().shape == EVEN.shape


def test_algorithms_of_mscclpp() -> None:
    newest = {name for rows in mscclpp.ALGORITHMS.values() for _, names in rows for name in names[:1]}
    chosen = {nbytes: mscclpp.choose("all_reduce", nbytes, newest).removeprefix("default_allreduce_")
              for nbytes in (4 * KIB, 16 * KIB, 32 * KIB, MIB, 4 * MIB, 16 * MIB)}  # fmt: skip
    assert list(chosen.values()) == ["allpair_packet", "allpair_packet", "nvls_packet", "packet", "nvls_warp_pipeline",
                                     "nvls_block_pipeline"]  # fmt: skip
    older = "default_allreduce_nvls_with_copy"
    assert mscclpp.choose("all_reduce", 4 * MIB, {older}) == older
    assert mscclpp.choose("all_gather", MIB, newest) == "default_allgather_fullmesh2"
    with pytest.raises(RuntimeError, match="no default_allgather_fullmesh, but other"):
        mscclpp.choose("all_gather", 64 * MIB, {"other"})


def test_calls_of_mscclpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """An all-gather gets this rank's bytes and the bytes of all."""
    given: dict[str, Any] = {}
    utils = SimpleNamespace(torch_dtype_to_mscclpp_dtype=str)
    package = SimpleNamespace(utils=utils, ReduceOp=SimpleNamespace(SUM="sum"))
    monkeypatch.setitem(sys.modules, "mscclpp", package)
    monkeypatch.setitem(sys.modules, "mscclpp.utils", utils)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=9))
    peer = mscclpp.Mscclpp(GPUS)
    peer._group = SimpleNamespace(communicator="comm")
    peer._algorithms = {"default_allgather_fullmesh2": SimpleNamespace(execute=lambda **kwargs: given.update(kwargs))}
    inputs = Inputs.of(EVEN, 0, "cpu")
    call = peer.prepare(EVEN, inputs)
    call.fill()
    call.run()
    assert (given["input_size"], given["output_size"]) == (inputs.x.nbytes, EVEN.nbytes)
    assert (given["comm"], given["op"], given["dtype"], given["stream"]) == ("comm", "sum", "torch.bfloat16", 9)
    assert call.result().data_ptr() == given["output_buffer"] and call.note == "default_allgather_fullmesh2"
