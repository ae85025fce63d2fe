"""What is replaced in transformers while the adapter is enabled, and how it is put back.

Every replacement looks at the config of the model it is called for. Unless that is a LongCat-Flash whose
experts_implementation is longcat_ops, it calls what it replaced: other models, and other threads, see no difference.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ...errors import LongcatCheckpointError, LongcatUnsupportedError, message
from . import configs
from .names import NAME, is_ours

_ABSENT = object()
_lock = threading.RLock()
_holds: list[Hold] = []
_kept: list[Hold] = []  # the hold of `keep`, at most one; also in _holds
_undo: list[Callable[[], None]] = []


class Hold:
    """One reason to stay enabled."""

    def __init__(self, default: bool) -> None:
        self.default = default


def hold(default: bool) -> Hold:
    """Adds a reason; the first one replaces. Raises LongcatUnsupportedError if transformers lacks what is replaced."""
    with _lock:
        if not _holds:
            try:
                for owner, name, new in _replacements():
                    _replace(owner, name, new)
            except (AttributeError, ImportError, KeyError) as error:
                _restore()
                import transformers

                got = f"version {transformers.__version__} without what is replaced in it ({error})"
                text = message("enabled", "transformers", got, "one as released")
                raise LongcatUnsupportedError(text) from error
        _holds.append(Hold(default))
        return _holds[-1]


def release(held: Hold) -> None:
    """Takes a reason away; the last one restores."""
    with _lock:
        if held in _holds:
            _holds.remove(held)
        if not _holds:
            _restore()


def keep(default: bool) -> None:
    """Holds until `let_go`, once."""
    with _lock:
        held = hold(default)
        let_go()
        _kept.append(held)


def let_go() -> None:
    """Ends `keep`, if there was one."""
    with _lock:
        while _kept:
            release(_kept.pop())


def _replace(owner: Any, name: str, new: Any) -> None:
    """Sets an attribute of a module or class, or an entry of a dict, and remembers how to undo that."""
    space = owner if isinstance(owner, MutableMapping) else vars(owner)
    old = space.get(name, _ABSENT)

    def undo() -> None:
        if space.get(name) is not new:
            return  # someone replaced ours in turn: theirs calls ours, which then calls the original
        if isinstance(owner, MutableMapping):
            owner.pop(name) if old is _ABSENT else owner.update({name: old})
        elif old is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, old)

    if isinstance(owner, MutableMapping):
        owner[name] = new
    else:
        setattr(owner, name, new)
    _undo.append(undo)


def _restore() -> None:
    while _undo:
        _undo.pop()()


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, replacement) of everything."""
    from transformers import modeling_utils
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.integrations.moe import ExpertsInterface
    from transformers.models.longcat_flash import modeling_longcat_flash as modeling

    from . import modules

    base = modeling.LongcatFlashPreTrainedModel
    yield ExpertsInterface._global_mapping, NAME, _other_model
    yield PreTrainedConfig, "get_config_dict", _reading(vars(PreTrainedConfig)["get_config_dict"].__func__)
    yield modeling, "LongcatFlashMoE", modules.MoE
    yield base, "get_correct_experts_implementation", _choosing(base.get_correct_experts_implementation)
    yield base, "set_experts_implementation", _switching(base.set_experts_implementation)
    yield base, "from_pretrained", _loading(base)
    yield modeling_utils, "get_hf_quantizer", _quantizing(modeling_utils.get_hf_quantizer)
    yield modeling_utils, "get_model_conversion_mapping", _converting(modeling_utils.get_model_conversion_mapping)


def _other_model(self: Any, *_: Any, **__: Any) -> None:
    """The entry in transformers' table of experts implementations, which serves every model."""
    got = f"{NAME!r} for {type(self).__name__}"
    raise LongcatUnsupportedError(message("forward", "experts_implementation", got, "a LongCat-Flash model"))


def _reading(stock: Callable[..., Any]) -> Any:
    @functools.wraps(stock)
    def get_config_dict(cls: type, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found, unused = stock(cls, *args, **kwargs)
        return configs.completed(found) if _holds else found, unused

    return classmethod(get_config_dict)


def _choosing(stock: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(stock)
    def get_correct_experts_implementation(self: Any, requested_experts: str | None) -> str:
        if requested_experts is None and any(held.default for held in _holds):
            requested_experts = NAME
        chosen = stock(self, requested_experts)
        if chosen == NAME:
            configs.check(self.config)
        return chosen

    return get_correct_experts_implementation


def _switching(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def set_experts_implementation(self: Any, experts_implementation: Any) -> None:
        asked, current = experts_implementation, self.config._experts_implementation
        asked = asked.get("", current) if isinstance(asked, dict) else asked
        if asked != current and NAME in (asked, current):
            fix = f"from_pretrained(path, experts_implementation={asked!r})"
            context = "the layout of the experts is chosen when a model is built"
            expected = f"{current!r}, with which it was built"
            raise LongcatUnsupportedError(
                message("set_experts_implementation", "experts_implementation", repr(asked), expected, context, fix)
            )
        stock(self, experts_implementation)

    return set_experts_implementation


def _loading(base: type) -> Any:
    """Loads a model for inference. Refuses missing experts, which transformers would draw at random."""

    @functools.wraps(base.from_pretrained.__func__)  # type: ignore[attr-defined]
    def from_pretrained(cls: type, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, info = super(base, cls).from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        if is_ours(model.config):
            _check_loaded(model, info)
            model.requires_grad_(False)  # no op has a gradient formula
        return (model, info) if output_loading_info else model

    return classmethod(from_pretrained)


def _check_loaded(model: Any, info: dict[str, Any]) -> None:
    missing = sorted(n for n in info["missing_keys"] if ".mlp.experts." in n or ".mlp.router." in n)
    scales = sorted(n for n in info["unexpected_keys"] if n.endswith("_scale_inv"))
    name = model.config._name_or_path  # "None" where tensors were passed
    where = f"{name if name not in ('', 'None') else 'what was loaded'} holds"
    if missing:
        raise LongcatCheckpointError(f"{where} nothing for {missing[0]} ({len(missing)} such tensors of the MoE).")
    if scales:
        fix = 'config.json needs "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}'
        got = f"FP8 scales ({scales[0]}), but its config.json says nothing of FP8"
        raise LongcatCheckpointError(f"{where} {got}.\n  fix: {fix}")


def _quantizing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def get_hf_quantizer(config: Any, quantization_config: Any, device_map: Any, *args: Any, **kwargs: Any) -> Any:
        stored = getattr(config, "quantization_config", None)
        if not _asks(config) or (stored is None and quantization_config is None):
            return stock(config, quantization_config, device_map, *args, **kwargs)
        from . import fp8

        return fp8.quantizer_for(config, stored, quantization_config), config, device_map

    return get_hf_quantizer


def _converting(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def get_model_conversion_mapping(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = stock(model, *args, **kwargs)
        if not _asks(model.config):
            return found
        from . import weights

        return weights.routed_only(found, model)

    return get_model_conversion_mapping


def _asks(config: Any) -> bool:
    """Whether a model of this config will be ours, also before transformers has settled that."""
    if getattr(config, "model_type", None) != configs.MODEL_TYPE:
        return False
    named = config._experts_implementation
    return named == NAME or (named is None and any(held.default for held in _holds))
