"""Where the weights of a network can lie on this machine."""

from __future__ import annotations

import torch

from ..errors import LongcatShapeError, LongcatUnsupportedError, message

_OWNER = "LongcatFlashForCausalLM"


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if this torch and this machine have it.

    Raises:
        LongcatShapeError: it is no device.
        LongcatUnsupportedError: there is none of its kind or number here, or the ops do not run on its kind.
    """
    if not isinstance(device, torch.device | str):
        raise LongcatShapeError(
            message(_OWNER, "device", f"of type {type(device).__name__}", "a torch.device or a str")
        )
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise LongcatShapeError(message(_OWNER, "device", repr(device), "cpu, cuda or cuda:N")) from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            expected = f"cpu, or cuda:0 .. cuda:{count - 1}" if count else "cpu: torch finds no CUDA device"
            raise LongcatUnsupportedError(
                message(_OWNER, "device", f"'{found}'", expected, fix="see `python -m longcat_ops doctor`")
            )
    elif found.type not in ("cpu", "meta"):
        raise LongcatUnsupportedError(message(_OWNER, "device", f"'{found}'", "cpu or cuda, where the ops run"))
    return found
