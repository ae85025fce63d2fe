"""The sentence of the LongCat report, row by row: collectives through NVLink SHARP in 4 blocks are ahead of NCCL and of
MSCCL++ from 4 KB to 96 MB, for even and for uneven token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from comm.cells import NORM, label

SENTENCE = "in 4 blocks, ahead of NCCL and MSCCL++ from 4 KB to 96 MB, even and uneven"
OURS, ORDINARY = "longcat_ops", "longcat_ops, ordinary tensors"
NAMED = ("NCCL", "MSCCL++")
FEWEST_GPUS = 4
BLOCKS = 4
PASS, FAIL, OPEN = "pass", "fail", "open"


def refusal(ranks: int, gpus: int) -> str:
    """Why --claim says nothing here; "" if it can."""
    if ranks >= FEWEST_GPUS and gpus >= ranks:
        return ""
    return (
        f"--claim needs one GPU for each of at least {FEWEST_GPUS} ranks: this run has {ranks} ranks and {gpus} GPUs. "
        "The sentence is about GPUs behind an NVLink switch: torchrun --nproc-per-node 8 -m pytest "
        "bench/comm/bench_comm.py --claim"
    )


def is_part(collective: str) -> bool:
    return collective != NORM


def ours_beside(us: Mapping[str, float], symmetric: bool) -> str | None:
    """Ours on the same kind of memory as a peer; the other one if only that has a time."""
    first, second = (OURS, ORDINARY) if symmetric else (ORDINARY, OURS)
    return first if first in us else second if second in us else None


def ratios(us: Mapping[str, float], symmetric: Mapping[str, bool]) -> dict[str, float]:
    """Each peer's time over ours, of the same run; no ratio without both times."""
    found = {}
    for name, time in us.items():
        ours = ours_beside(us, symmetric[name])
        if name not in (OURS, ORDINARY) and ours is not None:
            found[name] = round(time / us[ours], 4)
    return found


def _beaten(info: Mapping[str, Any]) -> dict[str, float]:
    """Peers that the sentence is about: every NCCL and MSCCL++."""
    return {name: ratio for name, ratio in info["ratio"].items() if name.startswith(NAMED)}


def verdict(info: Mapping[str, Any]) -> tuple[str, str]:
    """(PASS, FAIL or OPEN, why). A row is open where a peer of the sentence has no time and could have one, or where
    not 4 blocks ran."""
    ratio = _beaten(info)
    behind = [f"{name} ({1 / r:.2f}x as fast)" for name, r in ratio.items() if r <= 1]
    if behind:
        return FAIL, "behind " + ", ".join(behind)
    for name in NAMED:
        if not any(peer.startswith(name) for peer in ratio) and name not in info["lacks"]:
            return OPEN, f"no time of {name}: {info['absent'].get(name, 'it was not run')}"
    if not ratio:
        return OPEN, "no peer has a time"
    blocks = {info["blocks"][name] for name in (OURS, ORDINARY) if name in info["measured"]}
    if blocks != {str(BLOCKS)}:
        return OPEN, f"it ran in {', '.join(sorted(blocks)) or 'no'} blocks, not in {BLOCKS}"
    alone = "; ".join(f"{name}: {info['lacks'][name]}" for name in NAMED if name in info["lacks"])
    least = min(ratio, key=ratio.__getitem__)
    return PASS, f"{ratio[least]:.2f}x ahead of {least}" + (f" ({alone})" if alone else "")


def lines(infos: list[dict[str, Any]]) -> list[str]:
    """The table, and one line that says whether the sentence holds."""
    rows = [info for info in infos if is_part(info["collective"]) and "measured" in info]
    found = [f"the claim: {SENTENCE}"]
    found += [f"  {'collective':15s}{'rows':10s}{'size':>6s} {'mode':6s} {'ours, us':>10s}  verdict"]
    counted: Counter[str] = Counter()
    for info in rows:
        what, why = verdict(info)
        counted[what] += 1
        ours = [info["measured"][name]["us"] for name in (OURS, ORDINARY) if name in info["measured"]]
        size, shown = label(info["size"]), f"{min(ours):10.2f}" if ours else f"{'':10s}"
        found.append(f"  {info['collective']:15s}{info['distribution']:10s}{size:>6s} {info['mode']:6s} {shown}  "
                     f"{what}: {why}")  # fmt: skip
    total = f"{counted[PASS]} rows pass, {counted[FAIL]} fail, {counted[OPEN]} are open"
    holds = "holds" if rows and counted[PASS] == len(rows) else "does not hold" if counted[FAIL] else "is not shown"
    return [*found, f"  {total}: the claim {holds} on this machine"]
