"""The host emulator: its C++ tests, one by one, and its tensor-core arithmetic against mmaemu."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

import build_emulator

ROOT = Path(__file__).resolve().parents[2]


def _test_names() -> list[str]:
    """The C++ tests' names, read from the sources so that collecting builds nothing."""
    names = []
    for source in sorted((ROOT / "tests" / "emu").glob("*.cpp")):
        for line in source.read_text().splitlines():
            if line.startswith("TEST("):
                names.append(line[len("TEST(") : line.index(")")])
    return [name for name in names if name != "time"]


@pytest.fixture(scope="session")
def build_directory() -> Path:
    return build_emulator.build_tests()


@pytest.fixture(scope="session")
def results(build_directory: Path) -> dict[str, str]:
    """Every C++ test's outcome, from one run of all."""
    done = subprocess.run(
        [build_directory / "emu_tests", *_test_names()], capture_output=True, text=True, timeout=300, check=False
    )
    outcome = {}
    for line in done.stdout.splitlines():
        if line.startswith("ok "):
            outcome[line[3:]] = ""
        elif line.startswith("FAILED "):
            name, _, text = line[len("FAILED ") :].partition(": ")
            outcome[name] = text
    if done.returncode not in (0, 1):
        outcome["crash"] = f"emu_tests ended with {done.returncode}: {done.stderr[-2000:]}"
    return outcome


@pytest.mark.parametrize("name", _test_names())
def test_cpp(results: dict[str, str], name: str) -> None:
    assert name in results, results.get("crash", "the test did not run")
    assert results[name] == "", results[name]


@pytest.mark.slow
def test_sanitizers_find_nothing() -> None:
    """Every C++ test passes under the address and undefined-behaviour sanitizers (its own build, takes minutes)."""
    folder = build_emulator.build_sanitized()
    done = subprocess.run([folder / "emu_tests", *_test_names()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("\nok ") + done.stdout.startswith("ok ") == len(_test_names())


def test_hopper_accumulation_has_the_bits_of_mmaemu(build_directory: Path) -> None:
    """Chains of K / 32 instructions for 64 x 40 elements of three products, 7680 in all, have the bits of mmaemu."""
    torch = pytest.importorskip("torch")
    mmaemu = pytest.importorskip("mmaemu")
    library = ctypes.CDLL(str(build_directory / "libemu_numerics.so"))
    pointer = ctypes.c_void_p

    def emulated(a, b):
        out = torch.empty(a.shape[0], b.shape[0], dtype=torch.float32)
        library.emu_multiply_e4m3_hopper(
            pointer(a.data_ptr()), pointer(b.data_ptr()), a.shape[0], b.shape[0], a.shape[1], pointer(out.data_ptr())
        )
        return out

    generator = torch.Generator().manual_seed(1)
    different = chains = 0
    for k, scale in ((128, 1.0), (128, 100.0), (2048, 1.0)):
        shape_a, shape_b = (64, k), (40, k)
        a = (torch.randn(shape_a, generator=generator) * scale).to(torch.float8_e4m3fn)
        # Rows of very different magnitude make the alignment matter.
        spread = torch.exp2(torch.randint(-6, 3, shape_b, generator=generator).float())
        b = (torch.randn(shape_b, generator=generator) * spread).to(torch.float8_e4m3fn)
        expected = mmaemu.accumulate(a, b, use_fast_accum=True, splitk=1)
        different += int((expected.view(torch.int32) != emulated(a, b).view(torch.int32)).sum())
        chains += a.shape[0] * b.shape[0]
    assert chains == 7680
    assert different == 0
