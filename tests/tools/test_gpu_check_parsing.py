"""tools/gpu_check.py parses the output of pytest, compute-sanitizer and our own programs."""

from __future__ import annotations

import pytest

from device_check import parse

PYTEST_QUIET = """\
..s.F                                                                    [100%]
=================================== FAILURES ===================================
FAILED tests/test_x.py::test_y[3 failed in 9s] - assert 1 == 2
1 failed, 3 passed, 1 skipped in 4.21s
"""
PYTEST_LOUD = (
    "ERROR tests/test_z.py - ImportError\n======== 2 passed, 1 warning, 1 error in 93.02s (0:01:33) ========\n"
)
MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at fill(int *)+0x160 in fill.cu:6
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f3b1e800001 is misaligned
========= Invalid __global__ write of size 4 bytes
=========     at fill(int *)+0x160 in fill.cu:6
========= Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure" on CUDA API call
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sum(int *)+0x80 in sum.cu:11
=========     and Read access at sum(int *)+0xd0 in sum.cu:14 [511 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NOT_SUPPORTED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the documentation
"""
BENCHMARK = """\
.                                                                        [100%]
1 passed in 3.10s
{
    "machine_info": {"node": "x"},
    "benchmarks": [{"name": "test_gemm", "stats": {"median": 0.25}, "extra_info": {"tflop_per_s": 3.5}}]
}
"""


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (
            parse.parse_pytest,
            PYTEST_QUIET,
            {
                "ok": False,
                "counts": {"failed": 1, "passed": 3, "skipped": 1},
                "failed": ["tests/test_x.py::test_y[3"],
            },
        ),
        (
            parse.parse_pytest,
            PYTEST_LOUD,
            {"ok": False, "counts": {"passed": 2, "warning": 1, "error": 1}, "failed": ["tests/test_z.py"]},
        ),
        (parse.parse_pytest, "12 passed in 0.5s\n", {"ok": True, "counts": {"passed": 12}, "failed": []}),
        (parse.parse_pytest, "3 skipped in 0.5s\n", {"ok": False, "counts": {"skipped": 3}, "failed": []}),
        (parse.parse_pytest, "no tests ran in 0.01s\n", {"ok": False, "text": "no tests ran"}),
        (parse.parse_pytest, "Segmentation fault", {"ok": False, "text": "pytest printed no summary"}),
        (
            parse.parse_sanitizer,
            MEMCHECK,
            {
                "ok": False,
                "errors": 3,
                "reported": [
                    "Invalid __global__ write of size 4 bytes",
                    "Program hit cudaErrorLaunchFailure (error 719) due to "
                    '"unspecified launch failure" on CUDA API call',
                ],
            },
        ),
        (
            parse.parse_sanitizer,
            RACECHECK,
            {
                "ok": False,
                "errors": 1,
                "warnings": 0,
                "reported": ["Error: Race reported between Write access at sum(int *)+0x80 in sum.cu:11"],
            },
        ),
        (
            parse.parse_sanitizer,
            "========= COMPUTE-SANITIZER\nfine\n========= ERROR SUMMARY: 0 errors\n",
            {"ok": True, "errors": 0, "reported": []},
        ),
        (
            parse.parse_sanitizer,
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            {"ok": True, "errors": 0, "warnings": 0, "reported": []},
        ),
        (
            parse.parse_sanitizer,
            "bash: no such file\n",
            {"ok": False, "reported": [], "text": "compute-sanitizer printed no summary"},
        ),
        (parse.parse_json, 'warming up\n{"a": 1}\n', {"ok": True, "a": 1}),
        (parse.parse_json, '{"a": 1', {"ok": False, "text": "no JSON object was printed"}),
        (parse.parse_conformance, '{"cases": 2, "bad": []}', {"ok": True, "cases": 2, "bad": []}),
        (parse.parse_conformance, '{"cases": 2, "bad": ["x"]}', {"ok": False, "cases": 2, "bad": ["x"]}),
        (parse.parse_conformance, '{"cases": 0, "bad": []}', {"ok": False, "cases": 0, "bad": []}),
        (
            parse.parse_benchmark,
            BENCHMARK,
            {
                "ok": True,
                "counts": {"passed": 1},
                "failed": [],
                "benchmarks": [{"name": "test_gemm", "median_s": 0.25, "tflop_per_s": 3.5}],
            },
        ),
    ],
)  # fmt: skip
def test_parsers(parser, text: str, expected: dict) -> None:
    assert parser(text) == expected


def test_a_sanitizer_that_refuses_the_device_is_not_ok() -> None:
    found = parse.parse_sanitizer(NOT_SUPPORTED)
    assert not found["ok"] and "Device not supported" in found["text"]
