"""FP8 checkpoints (e4m3, one float32 scale per 128 x 128 block) on any device: experts stay FP8, the rest is widened.

transformers' own quantizer needs a GPU for that, and widens everything on a CPU.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatCheckpointError, LongcatUnsupportedError, message
from ...ops.quant import dequant_fp8
from .weights import FP8_SUFFIX

_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.experts\.(\d+)\.(?:gate|up|down)_proj\.weight$")
_FORM = {
    "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
    "scale_fmt": "float", "expert_dtype": "fp8",
}  # fmt: skip
_F8 = "F8_E4M3"


def quantizer_for(config: Any, stored: Any, argument: Any) -> Any:
    """A quantizer of transformers for the quantization_config of a checkpoint (`stored`: of its config.json).

    Raises:
        LongcatUnsupportedError: the checkpoint is quantised in another way, or the caller asks for something beside it.
    """
    if argument is not None:
        got, expected = f"a {type(argument).__name__}", "None: the checkpoint's own form is kept"
        raise LongcatUnsupportedError(message("from_pretrained", "quantization_config", got, expected))
    raw = stored if isinstance(stored, dict) else stored.to_dict()
    for name, only in _FORM.items():
        got = raw.get(name, only)
        got = list(got) if isinstance(got, tuple) else getattr(got, "value", got)
        if got != only:
            got, expected = f"{name} = {got!r}", f"{only!r}: e4m3 with scales of 128 x 128 blocks"
            raise LongcatUnsupportedError(message("from_pretrained", "quantization_config", got, expected))
    from transformers.utils.quantization_config import FineGrainedFP8Config

    config.quantization_config = FineGrainedFP8Config.from_dict(raw) if isinstance(stored, dict) else stored
    return _classes()["Fp8Experts"](config.quantization_config, pre_quantized=True)


def stored_dtypes(files: list[str] | None) -> dict[str, str]:
    """Tensor name -> dtype, as safetensors spells it, from the headers of the files."""
    if not files or not all(Path(file).suffix == ".safetensors" for file in files):
        raise LongcatUnsupportedError(
            message(
                "from_pretrained", "checkpoint", "not of safetensors files", "a folder of them: FP8 is read from those"
            )
        )
    from safetensors import safe_open

    found = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            found |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 - no mapping
    return found


def fp8_layers(dtypes: dict[str, str], experts: int) -> set[int]:
    """The layers whose experts are FP8. Raises LongcatCheckpointError for one that is so in part, or lacks scales."""
    kinds: dict[int, dict[str, str]] = defaultdict(dict)
    for name, dtype in dtypes.items():
        if dtype == _F8 and name + FP8_SUFFIX not in dtypes:
            raise LongcatCheckpointError(f"tensor {name} is float8_e4m3fn but {name}{FP8_SUFFIX} is missing.")
        match = _EXPERT.search(name)
        if match and int(match[2]) < experts:
            kinds[int(match[1])]["FP8" if dtype == _F8 else dtype] = name
    for layer, names in kinds.items():
        if "FP8" in names and len(names) > 1:
            listed = ", ".join(f"{name} is {kind}" for kind, name in sorted(names.items()))
            raise LongcatCheckpointError(
                f"the experts of layer {layer} are partly FP8, expected all or none: {listed}."
            )
    return {layer for layer, names in kinds.items() if "FP8" in names}


def __getattr__(name: str) -> type:
    if name in ("Fp8Experts", "Widen"):  # by name: a pickle finds them here, too
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, type]:
    from transformers.core_model_loading import ConversionOps, WeightConverter
    from transformers.quantizers.base import HfQuantizer

    class Fp8Experts(HfQuantizer):
        """transformers' protocol for a quantised checkpoint: which tensors to allocate, and how to fill them."""

        requires_calibration = False

        def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> None:
            layers = fp8_layers(stored_dtypes(checkpoint_files), model.config.n_routed_experts)
            for i, layer in enumerate(model.base_model.layers):
                if i in layers:
                    layer.mlp.experts.hold_fp8()

        def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
            widen = WeightConverter(["weight", f"weight{FP8_SUFFIX}"], "weight", [Widen()])
            return [*weight_conversions, widen]

        def is_serializable(self) -> bool:
            got, fix = "FP8 experts", "copy the folder that it was loaded from"
            raise LongcatUnsupportedError(message("save_pretrained", "model", got, "dense weights", fix=fix))

        @property
        def is_trainable(self) -> bool:
            return False

    class Widen(ConversionOps):
        """Converts any other tensor to the dtype of its parameter; FP8 ones are multiplied by their scales."""

        hf_quantizer = True  # tells transformers to pass tensors as they are stored

        def convert(self, input_dict: dict[str, Any], source_patterns: list[str], full_layer_name: str,
                    model: Any = None, **_: Any) -> dict[str, Tensor]:  # fmt: skip
            found = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
            weight, scale = (found.get(pattern) for pattern in source_patterns)
            dtype = model.get_parameter(full_layer_name).dtype
            if scale is not None:
                narrow = torch.float32 if dtype == torch.float64 else dtype
                weight = dequant_fp8(weight, scale.float(), narrow)
            return {full_layer_name: weight.to(dtype)}

    for cls in (Fp8Experts, Widen):
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
    return {"Fp8Experts": Fp8Experts, "Widen": Widen}
