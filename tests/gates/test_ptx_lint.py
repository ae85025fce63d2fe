"""tools/kernel_gates/ptx_lint.py on hand-written PTX: it reports every violation and nothing else."""

from __future__ import annotations

import random
import re

import pytest

from kernel_gates.ptx import functions
from kernel_gates.ptx_lint import lint

SHAPE = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
X = f"{SHAPE} {{%f1, %f2, %f3, %f4}}, %rd1, %rd2, p, 1, 1;"
Y = f"{SHAPE} {{%f5, %f6, %f7, %f8}}, %rd1, %rd2, p, 1, 1;"
FROM_REGISTERS = f"{SHAPE} {{%f1, %f2, %f3, %f4}}, {{%r1, %r2, %r3, %r4}}, %rd2, p, 1, 1;"
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
WAIT, WAIT_1 = "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"
TOUCHES, OVERWRITES = "touches", "overwrites"
ENDS, NO_FENCE = "ends with a product into", "no wgmma.fence between the last use of"
OTHER_ROLE = "of a product in flight is used in another role"
USE_X, USE_Y = "add.f32 %f9, %f9, %f1;", "add.f32 %f9, %f9, %f5;"
PING, PONG = [FENCE, Y, COMMIT, WAIT_1, USE_X], [FENCE, X, COMMIT, WAIT_1, USE_Y]


def kernel(*lines: str) -> str:
    """A kernel with one of `lines` a line, from line 4 on: lines[i] is line i + 4."""
    return "\n".join([".visible .entry some_kernel(.param .u64 p)", "{", ".reg .f32 %f<10>;", *lines, "ret;", "}"])


def findings(*lines: str) -> list[tuple[int, str]]:
    """The index of each line with a finding, and the finding's kind."""
    kinds = (TOUCHES, OVERWRITES, ENDS, NO_FENCE, OTHER_ROLE)
    return [(found.line - 4, next(kind for kind in kinds if kind in found.problem)) for found in lint(kernel(*lines))]


@pytest.mark.parametrize(
    "lines",
    [
        [FENCE, X, X, COMMIT, WAIT, USE_X],
        [f"{{ .reg .pred p; {FENCE}", X + "}", COMMIT, WAIT, USE_X],
        # Two groups; the older one has completed.
        [FENCE, X, COMMIT, Y, COMMIT, WAIT_1, USE_X, WAIT, USE_Y],
        # An empty commit also forms a group.
        [FENCE, X, COMMIT, COMMIT, WAIT_1, USE_X],
        # A pipelined loop that runs one group ahead of its waits.
        [FENCE, "$L1:", X, COMMIT, WAIT_1, "setp.lt.u32 %p1, %r1, %r2;", "@%p1 bra $L1;", WAIT, USE_X],
        # Two alternating groups, each used once the other has started.
        [FENCE, X, COMMIT, "$L1:", *PING, *PONG, "@%p1 bra $L1;", WAIT, USE_X],
        # Each branch has its own wait.
        [FENCE, X, COMMIT, "@%p1 bra $L1;", WAIT, "bra.uni $L2;", "$L1:", WAIT, "$L2:", USE_X],
        # Reading what a product reads, and writing it after the wait.
        ["mov.b32 %r1, 1;", FENCE, FROM_REGISTERS, COMMIT, "st.global.u32 [%rd1], %r1;", WAIT, "mov.b32 %r1, 2;"],
        # Registers that no product uses; a comment that only looks like an instruction.
        [FENCE, X, COMMIT, "add.f32 %f11, %f12, %f13;", "// add.f32 %f9, %f1, %f1;", WAIT],
        # A kernel without products.
        [USE_X, COMMIT, USE_Y],
    ],
)
def test_nothing_to_report(lines: list[str]) -> None:
    assert findings(*lines) == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # Waits.
        ([FENCE, X, COMMIT, USE_X, WAIT], [(3, TOUCHES)]),
        ([FENCE, X, COMMIT, "mov.f32 %f1, 0f00000000;", WAIT], [(3, TOUCHES)]),
        ([FENCE, X, COMMIT, "st.shared.v2.f32 [%r1], {%f1, %f2};", WAIT], [(3, TOUCHES)]),
        ([FENCE, X, COMMIT, USE_X], [(3, TOUCHES), (4, ENDS)]),
        ([FENCE, X, COMMIT, Y, COMMIT, WAIT_1, USE_X, USE_Y, WAIT], [(7, TOUCHES)]),
        ([FENCE, X, WAIT, USE_X, COMMIT, WAIT], [(3, TOUCHES)]),  # not yet committed to a group at the wait
        ([FENCE, X, COMMIT, WAIT_1], [(4, ENDS)]),
        # Fences.
        ([X, COMMIT, WAIT], [(0, NO_FENCE)]),
        ([X, X, X, COMMIT, WAIT], [(0, NO_FENCE)]),  # reported once
        ([FENCE, X, COMMIT, WAIT, USE_X, X, COMMIT, WAIT], [(5, NO_FENCE)]),
        ([FENCE, "mov.f32 %f2, 0f00000000;", X, COMMIT, WAIT], [(2, NO_FENCE)]),
        ([FENCE, "mov.b32 %r3, %r9;", FROM_REGISTERS, COMMIT, WAIT], [(2, NO_FENCE)]),
        # A from registers.
        ([FENCE, FROM_REGISTERS, COMMIT, "mov.b32 %r3, 0;", WAIT], [(3, OVERWRITES)]),
        ([FENCE, FROM_REGISTERS, COMMIT, "ld.shared.v2.u32 {%r7, %r3}, [%r8];", WAIT], [(3, OVERWRITES)]),
        ([FENCE, Y, FROM_REGISTERS.replace("%r1", "%f5"), COMMIT, WAIT], [(2, OTHER_ROLE)]),
        ([FENCE, FROM_REGISTERS.replace("%r1", "%f5"), COMMIT, Y, WAIT], [(3, OTHER_ROLE), (5, ENDS)]),
        # Paths: one branch without a wait, one without a fence, a guard, a table of branches.
        ([FENCE, X, COMMIT, "@%p1 bra $L1;", WAIT, "$L1:", USE_X, WAIT], [(6, TOUCHES)]),
        (["@%p1 bra $L1;", FENCE, "$L1:", X, COMMIT, WAIT], [(3, NO_FENCE)]),
        ([FENCE, X, COMMIT, f"@%p1 {WAIT}", USE_X, WAIT], [(4, TOUCHES)]),
        ([FENCE, X, COMMIT, "@!%p1 ret;", WAIT], [(3, ENDS)]),
        ([FENCE, X, COMMIT, "$T: .branchtargets $L1, $L2;", "brx.idx %r1, $T;", "$L1:", WAIT, "$L2:", USE_X, WAIT],
         [(8, TOUCHES)]),
        # Around a loop: used at its head while the last iteration's product runs; a wait that covers one group too few.
        ([FENCE, "$L1:", USE_X, FENCE, X, COMMIT, "@%p1 bra $L1;", WAIT], [(2, TOUCHES)]),
        ([FENCE, X, COMMIT, "$L1:", FENCE, Y, COMMIT, WAIT_1, USE_Y, "@%p1 bra $L1;", WAIT], [(8, TOUCHES)]),
        # The same label in two scopes: each branch targets its own.
        ([FENCE, X, COMMIT, "{", "@%p1 bra W;", WAIT, "W:", "}", "{", "@%p1 bra W;", "W:", WAIT, "}", USE_X], []),
        ([FENCE, X, COMMIT, "{", "@%p1 bra W;", WAIT, "W:", USE_X, "}", "{", "@%p1 bra W;", "W:", WAIT, "}"],
         [(7, TOUCHES)]),
    ],
)  # fmt: skip
def test_findings(lines: list[str], expected: list[tuple[int, str]]) -> None:
    assert findings(*lines) == expected


def walk(lines: list[str], choose: random.Random) -> set[int]:
    """Walks one thread through a program with random branches; returns the lines that break the rules."""
    wrong: set[int] = set()
    groups: list[set[str]] = [set()]  # accumulators of each pending group, the last not committed
    touched = {f"%f{i}" for i in range(1, 9)}
    at = 0
    for _ in range(60):
        if at == len(lines):
            if any(groups):
                wrong.add(at)
            break
        line, at = lines[at], at + 1
        registers = set(re.findall(r"%f[1-8]\b", line))
        if line in (X, Y):
            if touched & registers:
                wrong.add(at - 1)
            touched -= registers
            groups[-1] |= registers
        elif line == FENCE:
            touched.clear()
        elif line == COMMIT:
            groups.append(set())
        elif line in (WAIT, WAIT_1):
            groups = groups[-2:] if line == WAIT_1 else groups[-1:]
        elif line.startswith("@%p1 bra "):
            if choose.random() < 0.5:
                at = lines.index(line.split()[2].replace(";", ":"))
        else:
            if registers & set().union(*groups):
                wrong.add(at - 1)
            touched |= registers
    return wrong


def test_finds_what_any_walk_meets() -> None:
    """In random programs the lint finds exactly the lines that break the rules on some path."""
    choose = random.Random(1)
    seen = 0
    for _ in range(300):
        lines = choose.choices([FENCE, FENCE, X, Y, COMMIT, COMMIT, WAIT, WAIT, WAIT_1, USE_X, USE_Y], k=9)
        for label in ("$L1", "$L2"):
            lines.insert(choose.randrange(len(lines)), f"{label}:")
            lines.insert(choose.randrange(len(lines)), f"@%p1 bra {label};")
        met = set().union(*(walk(lines, choose) for _ in range(200)))
        assert {line for line, _ in findings(*lines)} == met, lines
        seen += len(met)
    assert seen > 300


def test_a_finding_says_all() -> None:
    (found,) = lint(kernel(FENCE, X, COMMIT, "st.global.f32 [%rd1], %f2;", WAIT))
    assert found.function == "some_kernel"
    assert str(found) == "line 7: touches %f2, the accumulator of a product in flight: st.global.f32 [%rd1], %f2"


def test_several_functions() -> None:
    """Each function is checked separately; declarations, data and debug sections are not functions."""
    text = "\n".join(
        [
            ".version 9.0",
            ".global .align 4 .b8 data[4] = {1, 2, 3, 4};",
            ".extern .func (.param .b32 result) elsewhere (.param .b64 a);",
            kernel(FENCE, X, COMMIT).replace("some_kernel", "first"),
            f".func (.param .b32 result) second(.param .b32 a)\n{{\n{X}\n{COMMIT}\n{WAIT}\nret;\n}}",
            ".section .debug_str\n{\n$L_info:\n.b8 95,90\n}",
        ]
    )
    assert [(name, len(body)) for name, body in functions(text)] == [("first", 4), ("second", 4)]
    assert [found.function for found in lint(text)] == ["first", "second"]


def test_a_label_that_is_nowhere() -> None:
    with pytest.raises(ValueError, match=r"the label \$L9 is not defined"):
        lint(kernel("bra.uni $L9;"))
