"""The backend `deepep`."""

from __future__ import annotations

import torch


def objection(device: torch.device) -> str:
    return "CUDA tensors only: this process group has no GPU"
