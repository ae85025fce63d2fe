"""The rungs of the ladder: each serves the same operations, with the same semantics, in another way."""
