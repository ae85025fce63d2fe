"""The one performance model: what devices can do (`devices`), how counts become time (`model`), and the counts of
products (`products`), of routing and dispatch (`dispatch`), of gate_up with SwiGLU in two forms (`swiglu`), of the
expert chain (`chain`) and of a layer (`layer`); between GPUs, collectives (`comm`, `comm_explain`) and expert
parallelism (`expert_parallel`, `expert_explain`); when each stage of a layer runs (`timeline`); and what drafts gain
(`speculation`).

Every prediction is a band, from a set of constants that is kind to the kernels to one that is not. Nothing here needs
torch but what comes from C++: the counts of our products, and how a collective runs.
"""

from .devices import DEVICES, Device, by_name
from .model import KIND, UNKIND, Band, Constants, Counts, floor, predict

__all__ = ["DEVICES", "KIND", "UNKIND", "Band", "Constants", "Counts", "Device", "by_name", "floor", "predict"]
