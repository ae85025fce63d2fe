"""Builds what a check needs into a folder, offline, if there is no bundle: the package, the conformance library and the
traced kernels.

python tools/build_for_device.py build/device      # needs nvcc, cmake, ninja, pybind11 and setuptools
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conformance.library import build_for_device
from device_check import traced
from device_check.environment import ROOT, source_hash


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    subprocess.run([*pip, "--target", str(folder / "site"), "."], check=True, cwd=ROOT)
    print(build_for_device(folder)[0], traced.build(folder))
    (folder / "manifest.json").write_text(json.dumps({"sources": source_hash()}))
    print('{"built": true}')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
