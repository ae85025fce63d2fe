"""Stash keys for what a test reports at the end of the run."""

import pytest

PRIMITIVES = pytest.StashKey[list[str]]()  # lines about the primitives of cuda/ptx, from tests/conformance
