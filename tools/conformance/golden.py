"""Golden files: results of the conformance cases on a GPU, one file per device, in tests/conformance/golden."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "conformance" / "golden"
FACTS = ("device", "driver", "cuda", "date")  # what every file says about its origin


def pack(actual: bytes) -> str:
    return base64.b64encode(zlib.compress(actual, 9)).decode()


def unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def read(folder: Path = FOLDER) -> list[dict]:
    """Every golden file: its FACTS, and `cases`: name -> packed bytes."""
    files = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        missing = [fact for fact in FACTS if not content.get(fact)]
        if missing:
            raise ValueError(f"{path.name} does not say its {', '.join(missing)}")
        files.append(content | {"file": path.name})
    return files


def write(path: Path, facts: dict, results: dict[str, bytes]) -> None:
    content = {fact: facts[fact] for fact in FACTS} | {"cases": {name: pack(b) for name, b in results.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n")
