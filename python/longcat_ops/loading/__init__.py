"""Reading checkpoints: which tensors a network needs, where they lie, in which precision they are held."""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
