"""The conformance cases of tests/conformance: their library, golden files and the table of primitives."""
