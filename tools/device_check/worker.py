"""The process that answers questions: it starts torch once. Its parent replaces it when a question crashes or hangs.

python -m device_check.worker FD DEVICE CONFORMANCE TRACED

Takes a JSON list [module.function, arguments] a line from stdin; writes a JSON object a line to the file descriptor FD:
first {"ready": true}, then an answer for each: {"answer": {...}} or {"error": "..."}, with "broken": true where the
device is lost to this process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def answer(machine: Any, question: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module, function = question.split(".")
    try:
        ask = getattr(importlib.import_module(f"device_check.questions.{module}"), function)
        result = {"answer": ask(machine, **arguments)}
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    try:
        machine.synchronize()
    except Exception as error:  # for example an illegal access: every later call would fail too
        result = {"error": result.get("error") or f"{type(error).__name__}: {error}"[:2000], "broken": True}
    return result


def main() -> None:
    descriptor, device, conformance, traced = sys.argv[1:]
    with os.fdopen(int(descriptor), "w", buffering=1) as answers:
        import torch

        from device_check.machine import Machine

        machine = Machine(device, Path(conformance), Path(traced))
        if machine.real:
            torch.zeros(1, device=device)
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            result = answer(machine, *json.loads(line))
            if machine.real:
                torch.cuda.empty_cache()  # the next question may need what is left in odd pieces
            print(json.dumps(result), file=answers)
            sys.stderr.flush()
            if result.get("broken"):
                break


if __name__ == "__main__":
    main()
