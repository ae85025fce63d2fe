"""The most memory that a process holds while it decodes 32 tokens behind a prompt of 64: ours, and HF transformers.

    python bench/engine/peak_memory.py     # both networks of bench_generate.py, each way in a process of its own

MB: of the weights as they lie in memory, and the peak of the process (VmHWM) above what it held with the model alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROMPT, NEW = 64, 32
WAYS = [
    (network, way)
    for network in ("tiny", "medium")
    for way in ("HF fp32", "HF bf16", "ours fp32", "ours bf16", "ours FP8")
]


def status(field: str) -> float:
    """MB of this process."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


def measure(network: str, way: str) -> None:
    import torch

    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "bench"), str(root / "tests"), str(root / "python")]
    from engine import networks

    torch.set_num_threads(1)
    whose, precision = way.split()
    model = networks.one(network, whose, precision)
    ids = torch.randint(3, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    weights = sum(t.nbytes for t in model.state_dict().values()) / 1e6
    decode = networks.run_hf if whose == "HF" else networks.run_ours
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    decode(model, ids, NEW)
    print(f"{network:7s} {way:10s} weights {weights:7.1f} MB, decoding {status('VmHWM') - held:6.1f} MB more")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(*sys.argv[1:])
    else:
        for network, way in WAYS:
            subprocess.run([sys.executable, __file__, network, way], check=True)
