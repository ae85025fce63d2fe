"""DeepGEMM's settings, one value per process. The alignment places groups of the psum layout. Every other setting is
checked and kept, and has no effect here.
"""

from __future__ import annotations

import torch

from ...errors import LongcatShapeError, message
from ...perf.devices import DEVICES
from ._calling import flag, integer

_ALIGNMENT = 128  # of DeepGEMM on SM90

_settings = {"num_sms": 0, "tc_util": 0, "pdl": False, "alignment": _ALIGNMENT}


def _device_sms() -> int:
    if not torch.cuda.is_available():
        return int(DEVICES["H100"].sms.value)
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def set_num_sms(new_num_sms: int) -> None:
    """Without effect: the kernels here use every SM. Kept for `get_num_sms`; 0 means all.

    Raises LongcatShapeError beyond 0 .. the SMs of the current device (those of an H100 without one).
    """
    _settings["num_sms"] = integer("set_num_sms", "new_num_sms", new_num_sms, 0, _device_sms())


def get_num_sms() -> int:
    """What was set, else the SMs of the current device, of an H100 without one."""
    return _settings["num_sms"] or _device_sms()


def set_tc_util(new_tc_util: int) -> None:
    """Without effect: no choice here depends on it. Kept for `get_tc_util`; 0 means 100.

    Raises LongcatShapeError beyond 0 .. 100.
    """
    _settings["tc_util"] = integer("set_tc_util", "new_tc_util", new_tc_util, 0, 100)


def get_tc_util() -> int:
    """What was set, else 100."""
    return _settings["tc_util"] or 100


def set_pdl(new_enable_pdl: bool) -> None:
    """Without effect: the kernels here always use programmatic dependent launch, and wait for what they read. Kept for
    `get_pdl`. Raises LongcatShapeError for what is no bool."""
    flag("set_pdl", "new_enable_pdl", new_enable_pdl)
    _settings["pdl"] = new_enable_pdl


def get_pdl() -> bool:
    """What was set, else False, as in DeepGEMM."""
    return _settings["pdl"]


def set_ignore_compile_dims(new_value: bool) -> None:
    """Without effect: nothing is compiled at run time. Raises LongcatShapeError for what is no bool."""
    flag("set_ignore_compile_dims", "new_value", new_value)


def set_block_size_multiple_of(new_value: int | tuple[int, int]) -> None:
    """Without effect: tiles are chosen from those that are built. Raises LongcatShapeError for what is neither a
    positive int nor two of them."""
    op, name = "set_block_size_multiple_of", "new_value"
    values = new_value if isinstance(new_value, tuple | list) else (new_value, new_value)
    if len(values) != 2:
        raise LongcatShapeError(message(op, name, repr(new_value), "a positive int, or two of them"))
    for value in values:
        integer(op, name, value, 1)


def set_mk_alignment_for_contiguous_layout(new_value: int) -> None:
    """Groups of the psum layout start at multiples of this value. Products here need no alignment, so 1 is legal
    and makes rows compact. Raises LongcatShapeError below 1."""
    op = "set_mk_alignment_for_contiguous_layout"
    _settings["alignment"] = integer(op, "new_value", new_value, 1)


def get_mk_alignment_for_contiguous_layout() -> int:
    """What was set, else 128, as in DeepGEMM."""
    return _settings["alignment"]


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    """128, as in DeepGEMM on SM90, whatever expected_m is. Raises LongcatShapeError if that is no int of 0 or more."""
    if expected_m is not None:
        integer("get_theoretical_mk_alignment_for_contiguous_layout", "expected_m", expected_m, 0)
    return _ALIGNMENT


get_m_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout
get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout
