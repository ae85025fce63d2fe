"""Writes the specialisations of longcat_ops::ptx::detail::Wgmma: usage: generate_wgmma.py OUTPUT

wgmma names every accumulator register as an operand and asm cannot take a list of varying length, so each of the 32
shapes m64nN needs its own text. See cuda/ptx/wgmma.cuh for what the functions do.
"""

from __future__ import annotations

import sys
from pathlib import Path

SHAPES = range(8, 257, 8)
PROLOGUE = """\
// Written by cmake/generate_wgmma.py; do not edit. Included by ptx/wgmma.cuh, which says what this is.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
namespace longcat_ops::ptx::detail {
"""
EPILOGUE = "}  // namespace longcat_ops::ptx::detail\n"


def product(n: int, k: int, kind: str, a_operands: list[str], immediates: list[str]) -> str:
    """The asm statement of one product: accumulators, then A, B, the predicate, then immediates as "n" operands."""
    count = n // 2
    b = count + len(a_operands)
    a_text = f"%{count}" if len(a_operands) == 1 else "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
    immediate_text = "".join(f", %{b + 2 + i}" for i in range(len(immediates)))
    inputs = [*a_operands, '"l"(b)', '"r"(static_cast<int>(accumulate))', *(f'"n"({name})' for name in immediates)]
    return (
        f'    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{b + 1}, 0;\\n"\n'
        f'                 "wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} " LC_PTX_ACC\n'
        f'                 ", {a_text}, %{b}, p, 1, 1{immediate_text};\\n}}\\n"\n'
        f"                 : LC_PTX_OPERANDS : {', '.join(inputs)});\n"
    )


def shape(n: int) -> str:
    count = n // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    from_smem = ['"l"(a)']
    from_registers = [f'"r"(a[{i}])' for i in range(4)]
    head = f"  static LC_DEVICE void {{name}}(float (&d)[{count}], {{a}}, uint64_t b, bool accumulate) {{{{\n"
    smem, fragment = "uint64_t a", "const uint32_t (&a)[4]"
    parts = [
        f'\n#define LC_PTX_ACC "{{{registers}}}"\n#define LC_PTX_OPERANDS {operands}\n',
        f"template <>\nstruct Wgmma<{n}> {{\n",
        head.format(name="e4m3", a=smem),
        product(n, 32, "e4m3", from_smem, []),
        "  }\n",
        head.format(name="e4m3_ra", a=fragment),
        product(n, 32, "e4m3", from_registers, []),
        "  }\n  template <int TRANS_A, int TRANS_B>\n",
        head.format(name="bf16", a=smem),
        product(n, 16, "bf16", from_smem, ["TRANS_A", "TRANS_B"]),
        "  }\n  template <int TRANS_B>\n",
        head.format(name="bf16_ra", a=fragment),
        product(n, 16, "bf16", from_registers, ["TRANS_B"]),
        f"  }}\n  template <int PENDING>\n  static LC_DEVICE void wait(float (&d)[{count}]) {{\n",
        f'    asm volatile("wgmma.wait_group.sync.aligned %{count};" : LC_PTX_OPERANDS : "n"(PENDING) : "memory");\n',
        "  }\n};\n#undef LC_PTX_ACC\n#undef LC_PTX_OPERANDS\n",
    ]
    return "".join(parts)


def generate() -> str:
    return PROLOGUE + "".join(shape(n) for n in SHAPES) + "\n" + EPILOGUE


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    output = Path(sys.argv[1])
    text = generate()
    # Left alone when nothing changed, so that a configure run rebuilds nothing.
    if not output.exists() or output.read_text() != text:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


if __name__ == "__main__":
    main()
