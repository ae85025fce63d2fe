"""PTX as nvcc writes it: functions, their statements, and how control flows between these."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_HEAD = re.compile(r"^(?:\.(?:visible|weak)\s+)?\.(?:entry|func)\b[^;{]*?([\w$]+)\s*\([^;{]*\{", re.MULTILINE)
_NOT_CODE = re.compile(r"//[^\n]*|^[ \t]*\.(?:loc|file)\b[^\n]*", re.MULTILINE)
# A label, a brace of a scope, or a statement, whose operands may be lists in braces.
_TOKEN = re.compile(r"\s*(?:([\w$]+):(?!:)|([{}])|([^;{}]+(?:\{[^{}]*\}[^;{}]*)*);)")
_STATEMENT = re.compile(r"(?:@(!?[%\w]+)\s+)?([.\w:]+)\s*(.*)", re.DOTALL)
_ENDS = ("ret", "exit", "trap")


@dataclass
class Statement:
    line: int
    opcode: str
    operands: str
    guard: str  # "" or its predicate
    following: list[int] = field(default_factory=list)  # indices of the statements that may come next

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {' '.join(self.operands.split())}".rstrip()


def functions(text: str) -> Iterator[tuple[str, list[Statement]]]:
    """Name and statements of every function. Directives (.reg, .pragma) are left out."""
    text = _NOT_CODE.sub("", text)
    newlines = [match.start() for match in re.finditer("\n", text)]
    for head in _HEAD.finditer(text):
        yield head[1], _body(text, head.end(), newlines)


def _body(text: str, start: int, newlines: list[int]) -> list[Statement]:
    statements: list[Statement] = []
    labels: dict[tuple[tuple[int, ...], str], int] = {}  # (scopes around it, label) -> the statement after it
    tables: dict[str, list[str]] = {}  # of brx.idx
    inside: list[tuple[int, ...]] = []  # of each statement: the scopes around it, outermost first
    scopes: tuple[int, ...] = ()
    name, number = "", 0
    for token in _TOKEN.finditer(text, start):
        label, brace, statement = token.groups()
        if label:
            name = label
            labels[scopes, label] = len(statements)
        elif brace == "{":
            number += 1
            scopes += (number,)
        elif brace:
            if not scopes:
                break
            scopes = scopes[:-1]
        else:
            guard, opcode, operands = _STATEMENT.match(statement.strip()).groups()
            if opcode == ".branchtargets":
                tables[name] = re.findall(r"[\w$]+", operands)
            if opcode.startswith("."):
                continue
            at = bisect_right(newlines, token.start(3)) + 1
            statements.append(Statement(at, opcode, operands, guard or ""))
            inside.append(scopes)

    def target(label: str, around: tuple[int, ...]) -> int:
        for depth in range(len(around), -1, -1):
            if (around[:depth], label) in labels:
                return labels[around[:depth], label]
        raise ValueError(f"PTX: the label {label} is not defined")

    for i, (statement, around) in enumerate(zip(statements, inside, strict=True)):
        kind = statement.opcode.split(".")[0]
        goes: list[str] = []
        if kind == "bra":
            goes = [statement.operands.strip()]
        elif kind == "brx":
            goes = tables[statement.operands.split(",")[1].strip()]
        following = [target(label, around) for label in goes]
        if statement.guard or not (goes or kind in _ENDS):
            following.append(i + 1)
        statement.following = [j for j in following if j < len(statements)]
    return statements
