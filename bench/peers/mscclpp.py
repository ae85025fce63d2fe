"""MSCCL++ (package mscclpp), by the algorithms that its Python interface builds by default, on ordinary tensors.

Which of them runs at which size follows the selector of its NCCL interface for one node of Hopper GPUs. Written from
its examples and its source: it has not run here.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from comm.cells import KIB, MIB, Cell, Inputs
from report.fleet import Fleet

from .collective import Call, Collectives
from .peer import not_importable

SCRATCH_BYTES = 1 << 27
COLLECTIVES = {"all_reduce": "allreduce", "all_gather": "allgather"}
_ANY = 1 << 62
# The largest message in bytes, and the algorithms for it: the first that the package has.
ALGORITHMS = {
    "all_reduce": (
        (16 * KIB, ("default_allreduce_allpair_packet", "default_allreduce_nvls_packet")),
        (32 * KIB, ("default_allreduce_nvls_packet",)),
        (MIB, ("default_allreduce_packet",)),
        (16 * MIB - 1, ("default_allreduce_nvls_warp_pipeline", "default_allreduce_nvls_with_copy")),
        (_ANY, ("default_allreduce_nvls_block_pipeline", "default_allreduce_nvls_with_copy")),
    ),
    "all_gather": (
        (32 * MIB, ("default_allgather_fullmesh2", "default_allgather_fullmesh")),
        (_ANY, ("default_allgather_fullmesh", "default_allgather_fullmesh2")),
    ),
}


def choose(collective: str, message: int, present: set[str]) -> str:
    """The name of the algorithm. message: bytes that a rank puts in. RuntimeError if the package has none of them."""
    names = next(names for most, names in ALGORITHMS[collective] if message <= most)
    for name in names:
        if name in present:
            return name
    raise RuntimeError(f"this MSCCL++ has no {names[0]}, but {', '.join(sorted(present)) or 'nothing'}")


class Mscclpp(Collectives):
    name = "MSCCL++"

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._algorithms: dict[str, Any] = {}

    def absent(self) -> str:
        return not_importable("mscclpp", "mscclpp") or self.lacks_gpus()

    def open(self) -> None:
        import mscclpp
        import mscclpp.ext

        self._group = mscclpp.CommGroup(torch_group=self.fleet.control)
        raw = mscclpp.RawGpuBuffer(SCRATCH_BYTES).to_dlpack(data_type=str(torch.float16))
        self._scratch = torch.utils.dlpack.from_dlpack(raw)
        self._flags = torch.ones(128, dtype=torch.uint32, device=self.fleet.device)
        build = mscclpp.ext.AlgorithmCollectionBuilder().build_default_algorithms
        given: dict[str, Any] = dict(scratch_buffer=self._scratch.data_ptr(), scratch_buffer_size=self._scratch.nbytes,
                                     rank=self.fleet.rank)  # fmt: skip
        if "flag_buffer" in inspect.signature(build).parameters:
            given |= dict(flag_buffer=self._flags.data_ptr(), flag_buffer_size=self._flags.nbytes)
        self._algorithms = {one.name: one for one in build(**given)}

    def lacks(self, cell: Cell) -> str:
        if cell.collective not in COLLECTIVES:
            return f"no {cell.collective} among its default algorithms"
        return f"no {cell.collective} for uneven rows" if cell.uneven else ""

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        import mscclpp
        import mscclpp.utils

        x = torch.empty_like(inputs.x)
        out = x if cell.collective == "all_reduce" else x.new_empty(cell.shape)
        chosen = choose(cell.collective, x.nbytes, set(self._algorithms))
        algorithm, dtype = self._algorithms[chosen], mscclpp.utils.torch_dtype_to_mscclpp_dtype(x.dtype)

        def run() -> None:
            algorithm.execute(
                comm=self._group.communicator, input_buffer=x.data_ptr(), output_buffer=out.data_ptr(),
                input_size=x.nbytes, output_size=out.nbytes, dtype=dtype, op=mscclpp.ReduceOp.SUM,
                stream=torch.cuda.current_stream().cuda_stream,
            )  # fmt: skip

        return Call(lambda: x.copy_(inputs.x), run, lambda: out, chosen)

    def close(self) -> None:
        self._algorithms, self._scratch, self._group = {}, None, None
