"""What one rank's share of the experts of a layer moves and may take, fused and unfused: predictions for an H100.

    python bench/chain_model.py                             # the tables
    python bench/chain_model.py --renew docs/fused_moe.md   # into the page, between its two marks

A rank holds G = 512 / EP experts. Each of its T * EP tokens (T of its own, the others from the ranks beside it) chooses
8 FFN experts at random, so 8 T rows arrive here. What travels between ranks is left out. Counts are expectations, the
rows of an expert their mean.

A kernel takes what it moves, every byte once, at 3.0 TB/s, or its products at 1500 TFLOPS if that is longer, and an
overhead: 4.5 us for launch, first bytes and tail; with programmatic dependent launch 2.1 us, three trips to memory of
0.7 us. All of these are assumptions.

Ours: permute_quant, gate_up with SwiGLU and quantisation, down, combine. Unfused, as by DeepGEMM's masked layout: the
same quantisation, gate_up to bf16, SwiGLU and quantisation, down, combine, each launch after the one ahead of it has
ended; its products read and write whole blocks of 64 rows an expert (128 above 64 rows). Routing and plan are the same
kernels in both, by bench_moe.py's prediction, and counted in both.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HIDDEN, WIDTH, EXPERTS, K, REAL = 6144, 2048, 512, 12, 8
TOKENS, SHARES = (1, 8, 96, 192), (1, 8, 32, 128)  # of a rank; ranks
SUSTAINED, FP8_FLOPS, PEAK = 3.0e12, 1.5e15, 3.35e12
ALONE_US, OVERLAPPED_US = 4.5, 3 * 0.7
GATE_UP, DOWN = (2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)  # N, K of an expert
BEGIN, END = "<!-- predictions: bench/chain_model.py -->\n", "<!-- end of predictions -->\n"


def weight_bytes(shape: tuple[int, int]) -> int:
    """e4m3 and a float32 scale for 128 x 128."""
    n, k = shape
    return n * k + 4 * (n // 128) * (k // 128)


def fp8_row(width: int) -> int:
    """e4m3 and a float32 scale for 128."""
    return width + 4 * width // 128


@dataclass(frozen=True)
class Kernel:
    """rows: of its product, as many as it multiplies; 0: none."""

    name: str
    bytes: float
    rows: float = 0
    shape: tuple[int, int] = (0, 0)

    def us(self, overhead_us: float) -> float:
        flops = 2 * self.rows * self.shape[0] * self.shape[1]
        return 1e6 * max(self.bytes / SUSTAINED, flops / FP8_FLOPS) + overhead_us


@dataclass(frozen=True)
class Share:
    """T tokens of each of `ranks` ranks, seen by one of them."""

    tokens: int
    ranks: int

    def __str__(self) -> str:
        return f"EP{self.ranks}-T{self.tokens}"

    @property
    def groups(self) -> int:
        return EXPERTS // self.ranks

    @property
    def rows(self) -> int:
        return REAL * self.tokens

    @property
    def active(self) -> float:
        """Experts that have rows."""
        return self.groups * (1 - (1 - REAL / EXPERTS) ** (self.tokens * self.ranks))

    @cached_property
    def received(self) -> float:
        """Tokens with a row here: all but those whose 8 experts, all different, are elsewhere."""
        elsewhere = 1.0
        for i in range(REAL):
            elsewhere *= max(0, EXPERTS - self.groups - i) / (EXPERTS - i)
        return self.tokens * self.ranks * (1 - elsewhere)

    @property
    def mean_rows(self) -> float:
        return self.rows / self.active

    def padded_rows(self, block: int) -> float:
        return self.active * -(-self.mean_rows // block) * block

    def kernels(self, fused: bool) -> list[Kernel]:
        """The launches behind the plan."""
        rows, tables = self.rows, 4 * K * self.received
        tokens, read, written = self.received * 2 * HIDDEN, rows * fp8_row(HIDDEN), rows * fp8_row(WIDTH)
        quant = Kernel("quant", tokens + tables + 4 * rows + read)
        combine = Kernel("combine", 2 * tokens + rows * 2 * HIDDEN + 2 * tables + 4 * self.received)
        gate_up, down = (self.active * weight_bytes(shape) for shape in (GATE_UP, DOWN))
        if fused:
            multiplied = self.padded_rows(8)
            return [
                quant,
                Kernel("gate_up", gate_up + read + written, multiplied, GATE_UP),
                Kernel("down", down + written + rows * 2 * HIDDEN, multiplied, DOWN),
                combine,
            ]
        padded = self.padded_rows(64 if self.mean_rows <= 64 else 128)
        bf16 = 2 * 2 * WIDTH
        return [
            quant,
            Kernel("gate_up", gate_up + padded * (fp8_row(HIDDEN) + bf16), padded, GATE_UP),
            Kernel("silu_and_mul_quant", rows * bf16 + written),
            Kernel("down", down + padded * (fp8_row(WIDTH) + 2 * HIDDEN), padded, DOWN),
            combine,
        ]

    def routing(self) -> tuple[int, float]:
        """(launches, us) of route and plan, in both chains."""
        from bench_moe import predicted

        plan_tokens = max(1, round(self.received))
        launches = 1 + (self.tokens > 8) + (1 if plan_tokens * K <= 8192 else 3)
        return launches, predicted("moe_route", self.tokens)["predicted_us"] + predicted("moe_plan", plan_tokens)[
            "predicted_us"
        ]

    def us(self, fused: bool, overhead_us: float) -> float:
        return self.routing()[1] + sum(kernel.us(overhead_us) for kernel in self.kernels(fused))

    def bytes(self, fused: bool) -> float:
        return sum(kernel.bytes for kernel in self.kernels(fused))


def shares() -> list[Share]:
    return [Share(tokens, ranks) for ranks in SHARES for tokens in TOKENS]


def table() -> str:
    lines = [
        "| EP | T | experts with rows, of G | rows of one | launches, fused / not | MB, fused / not | us, fused "
        "| us, fused, PDL of no use | us, not fused | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for share in shares():
        launches = share.routing()[0]
        ours, plain, theirs = share.us(True, OVERLAPPED_US), share.us(True, ALONE_US), share.us(False, ALONE_US)
        moved = " / ".join(f"{share.bytes(fused) / 1e6:.1f}" for fused in (True, False))
        lines.append(
            f"| {share.ranks} | {share.tokens} | {share.active:.1f} of {share.groups} | {share.mean_rows:.1f} "
            f"| {launches + 4} / {launches + 5} | {moved} | {ours:.1f} | {plain:.1f} | {theirs:.1f} "
            f"| {theirs / ours:.2f} |"
        )
    return "\n".join(lines) + "\n"


def renewed(text: str, begin: str, end: str, tables: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{tables}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", type=Path, help="the page to write into")
    args = parser.parse_args(arguments)
    if args.renew:
        args.renew.write_text(renewed(args.renew.read_text(encoding="utf-8"), BEGIN, END, table()), encoding="utf-8")
    else:
        print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
