"""answers.jsonl in the output folder: a line for each run, then one for each of its steps as soon as it is known. The
last line of a step counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FINISHED = ("passed", "failed", "timed out", "crashed")  # what a later run does not repeat
ANSWER_LIMIT = 64 << 10  # characters of one answer
LOG_LIMIT = 12 << 20  # bytes of log.txt


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a line that was cut off is skipped."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


class Answers:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log = folder / "answers.jsonl", folder / "log.txt"
        lines = read_lines(self.path)
        self.runs = [line["run"] for line in lines if "run" in line]
        self.steps = {line["step"]: line for line in lines if "step" in line}

    def add(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        if len(text) > ANSWER_LIMIT:
            text = json.dumps(line | {"answer": {}, "text": f"an answer of {len(text)} characters was dropped"})
        with self.path.open("ab+") as file:
            if file.tell() > 0:  # a run that was killed may have left half a line
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if "run" in line:
            self.runs.append(line["run"])
        else:
            self.steps[line["step"]] = line

    def status(self, step: str) -> str:
        return self.steps.get(step, {}).get("status", "")

    def is_finished(self, step: str) -> bool:
        return self.status(step) in FINISHED

    def append_log(self, text: str) -> None:
        with self.log.open("ab") as file:
            file.write(text.encode()[: max(0, LOG_LIMIT - file.tell())])
