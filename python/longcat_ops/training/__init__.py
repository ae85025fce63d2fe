"""For trainers: control of the router, losses, monitors, initial values (docs/training.md), and the bits of
computations and weights (docs/determinism.md).
"""

import importlib

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from . import determinism as determinism
from .activations import ActivationMonitor, Activations, activation_monitor, hidden_z_loss
from .adam_epsilon import EpsilonCheck, adam_epsilon_check
from .balance_loss import device_balance_loss
from .bias_controller import BiasController
from .checksums import Checksums, checksum, tensors_of
from .initialisation import VarianceAlignment, init_longcat_, variance_alignment
from .router_stability import BalanceWeight, router_gradient_ratio, router_similarity
from .transfer import transfer_hyperparameters
from .watch import Watch

__all__ = [
    "ActivationMonitor",
    "Activations",
    "BalanceWeight",
    "BiasController",
    "Checksums",
    "EpsilonCheck",
    "VarianceAlignment",
    "Watch",
    "activation_monitor",
    "adam_epsilon_check",
    "checksum",
    "device_balance_loss",
    "hidden_z_loss",
    "init_longcat_",
    "router_gradient_ratio",
    "router_similarity",
    "tensors_of",
    "transfer_hyperparameters",
    "variance_alignment",
]


def __getattr__(name: str) -> object:
    """`functional`, whose ops are registered when it is first used."""
    if name != "functional":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.functional")
