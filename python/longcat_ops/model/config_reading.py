"""From a `config.json` to the values of the network, in the spellings of the published files and of transformers."""

from __future__ import annotations

from typing import Any

from .config_keys import (
    ARCHITECTURE,
    HARMLESS,
    KEYS,
    MODEL_TYPE,
    MUST_BE_OFF,
    ONLY,
    Key,
    dtype_name,
    refuse,
    shown,
    unsupported,
)

PLAIN = "none: plain RoPE"


def read(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(values by their own name, unknown keys that say something) of a config.json.

    Raises: LongcatUnsupportedError for another network, LongcatShapeError for a value that cannot be, and for names of
        one value that disagree.
    """
    _check_family(raw)
    known = {alias for key in KEYS.values() for alias in key.aliases} | KEYS.keys() | ONLY.keys() | HARMLESS
    for name, value in raw.items():
        _check_mathematics(name, value, known)
    values = {}
    for name, key in KEYS.items():
        if name != "rope_theta":
            _add(values, raw, name, key)
    _add_layers(values, raw)
    values |= _rope(raw)
    dtypes = {name: dtype_name(name, raw[name]) for name in ("torch_dtype", "dtype") if name in raw}
    values["torch_dtype"] = _one(dtypes, "torch_dtype", "dtype")
    values["quantization_config"] = _one(raw, "quantization_config", "compression_config")
    if "eos_token_id" in raw:
        values["eos_token_id"] = raw["eos_token_id"]
    _check_derived(values, raw)
    return values, [n for n, v in raw.items() if n not in known and v not in (None, False, "", [], {})]


def _check_family(raw: dict[str, Any]) -> None:
    kind, names = raw.get("model_type"), raw.get("architectures")
    if kind not in (None, MODEL_TYPE):
        raise unsupported("model_type", kind, f"{MODEL_TYPE!r} or no model_type")
    if names in (None, []):
        return
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise refuse("architectures", names, f"a list of names, [{ARCHITECTURE!r}]")
    if set(names) != {ARCHITECTURE}:
        raise unsupported("architectures", names, f"[{ARCHITECTURE!r}] or no architectures")


def _check_mathematics(name: str, value: object, known: set[str]) -> None:
    if name in ONLY:
        legal = any(value == only and isinstance(value, bool) == isinstance(only, bool) for only in ONLY[name])
        if value is not None and not legal:
            raise unsupported(name, value, " or ".join(map(repr, ONLY[name])) or "no such key")
    elif name not in known and MUST_BE_OFF.search(name) and value not in (None, False, 0, "", [], {}):
        raise unsupported(name, value, "null, false or no such key: this network has nothing of the kind")
    elif name in ("layer_types", "attention_types") and set(_as_list(value)) - {None, "full_attention"}:
        raise unsupported(name, value, "'full_attention' for every layer")


def _as_list(value: object) -> list[object]:
    return [repr(v) if isinstance(v, list | dict) else v for v in (value if isinstance(value, list) else [value])]


def _add(values: dict[str, Any], raw: dict[str, Any], name: str, key: Key) -> None:
    """The value of key `name` under any of its names. Every one is checked, and they must agree."""
    spelled = [n for n in (name, *key.aliases) if n in raw]
    for n in spelled:
        if not key.is_legal(raw[n]):
            raise refuse(n, raw[n], key.expected)
    if spelled:
        values[name] = _one(raw, *spelled)


def _one(raw: dict[str, Any], *names: str) -> Any:
    """The value under one or several of `names`; null if none of them has one."""
    said = [n for n in names if raw.get(n) is not None]
    for other in said[1:]:
        if raw[other] != raw[said[0]]:
            expected = f"{shown(raw[said[0]])}, as {said[0]} says: both name one value"
            raise refuse(other, raw[other], expected)
    return raw[said[0]] if said else None


def _add_layers(values: dict[str, Any], raw: dict[str, Any]) -> None:
    """transformers counts attentions in num_hidden_layers: two to a layer."""
    if "num_hidden_layers" not in raw:
        return
    attentions, most = raw["num_hidden_layers"], 2 * KEYS["num_layers"].high
    if not Key(int, 0, most).is_legal(attentions) or attentions % 2:
        raise refuse("num_hidden_layers", attentions, f"an even number in 0 .. {most}: two attentions to a layer")
    if values.setdefault("num_layers", attentions // 2) != attentions // 2:
        expected = f"{2 * values['num_layers']}: num_layers is {values['num_layers']}, with two attentions to a layer"
        raise refuse("num_hidden_layers", attentions, expected)


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """rope_theta as transformers finds it: the one in rope_scaling, else rope_parameters, wins over that at the top."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name)
        if isinstance(rope, str):
            raise unsupported(name, rope, PLAIN)
        if not isinstance(rope, dict | None):
            raise refuse(name, rope, f"an object or null, {PLAIN}")
        for key, value in (rope or {}).items():
            plain = {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1,), "factor": (1,)}
            legal = value is None or key == "rope_theta" or value in plain.get(key, ())
            if not legal and key not in ("original_max_position_embeddings", "max_position_embeddings"):
                raise unsupported(name, rope, PLAIN, context=f"its key {key} is {value!r}"[:200])
    chosen = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    inner = raw.get(chosen) or {}
    name, found = ("rope_theta", raw) if "rope_theta" not in inner else (f"{chosen}.rope_theta", inner)
    top = raw.get("rope_theta")
    if top is not None and not KEYS["rope_theta"].is_legal(top):
        name, found = "rope_theta", raw
    if "rope_theta" not in found:
        return {}
    if not KEYS["rope_theta"].is_legal(found["rope_theta"]):
        raise refuse(name, found["rope_theta"], KEYS["rope_theta"].expected)
    return {"rope_theta": float(found["rope_theta"])}


def _check_derived(values: dict[str, Any], raw: dict[str, Any]) -> None:
    """Keys that repeat what other keys say."""
    sums = (
        ("head_dim", ("qk_rope_head_dim",)),
        ("qk_head_dim", ("qk_nope_head_dim", "qk_rope_head_dim")),
        ("num_key_value_heads", ("num_attention_heads",)),
    )
    for name, parts in sums:
        if raw.get(name) is not None and all(part in values for part in parts):
            total = sum(values[part] for part in parts)
            if isinstance(raw[name], bool) or raw[name] != total:
                raise refuse(name, raw[name], f"{total}, {' + '.join(parts)}, or no such key")


def missing(raw: dict[str, Any]) -> str:
    """What a config.json lacks, each required key under all its names; "" if it has them all."""
    names = {name: (name, *key.aliases) for name, key in KEYS.items() if key.required}
    names["num_layers"] = ("num_layers", "num_hidden_layers (twice as many)")
    absent = [spelled for spelled in names.values() if not any(n.split()[0] in raw for n in spelled)]
    if not absent:
        return ""
    nested = [n for n, v in raw.items() if n.endswith("_config") and isinstance(v, dict) and KEYS.keys() & v.keys()]
    listed = "; ".join(" or ".join(spelled) for spelled in absent)
    return f"missing: {listed}" + (f"\n  the keys inside {nested[0]} are not read" if nested else "")
