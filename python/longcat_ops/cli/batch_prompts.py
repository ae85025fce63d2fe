"""The prompts of `generate --prompts`: read, checked line by line before anything runs."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.checks import check_prompts, check_sampling
from ..engine.generate import seed_of
from ..engine.text import encode
from ..errors import LongcatShapeError, message
from ..model import LongcatFlashConfig
from ..model.cache import PAGE_SIZE
from ..model.checks import described, is_integer, require
from .texts import read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEYS = ("id", "prompt", "ids", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")


@dataclass(frozen=True)
class Asked:
    """One line: what is submitted. prompt: its text. name: its "id". options: of `Engine.submit`."""

    index: int
    name: str | int | None
    prompt: str
    ids: list[int]
    max_new_tokens: int
    options: dict[str, Any]

    def seed(self, run: int) -> int:
        """Its own seed, or one made of the run's and its index, so that it does not depend on other requests."""
        own = self.options["seed"]
        return seed_of(run, self.index) % 2**62 if own is None else own

    @property
    def pages(self) -> int:
        """Pages of the cache that it may need: its last token has no row."""
        return -(-(len(self.ids) + self.max_new_tokens - 1) // PAGE_SIZE)


@dataclass(frozen=True)
class Prompts:
    """A file of prompts. sha256: of its bytes."""

    name: str
    sha256: str
    asked: list[Asked]

    def line(self, index: int) -> str:
        """Where a request is, for a message."""
        return f"{self.name}, line {index + 1}"


def read_prompts(args: argparse.Namespace, config: LongcatFlashConfig, tokenizer: Tokenizer) -> Prompts:
    """The requests of --prompts: a name in .jsonl has an object a line, any other file a prompt a line. What a line
    does not say, the options do.

    Raises: LongcatShapeError for a line that is no legal request, with its number.
    """
    text = read_text("--prompts", args.prompts)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[-1] == "":
        lines.pop()
    require(bool(lines), "generate", "--prompts", f"{args.prompts}, an empty file", "at least one prompt")
    shared = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_k": args.top_k,
              "top_p": args.top_p, "seed": None, "stop": args.stop or []}  # fmt: skip
    is_json = args.prompts.endswith(".jsonl")
    found = Prompts(args.prompts, sha256, [])
    for index, line in enumerate(lines):
        try:
            own = _object(line) if is_json else {"prompt": line.removesuffix("\r")}
            found.asked.append(_asked(index, shared | own, config, tokenizer))
        except LongcatShapeError as error:
            raise LongcatShapeError(f"{found.line(index)}: {error}") from error
    return found


def _object(line: str) -> dict[str, Any]:
    """The keys of a line of JSON; null is as good as absent."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        got = f"{described(line)} ({error})" if line.strip() else "an empty line"
        raise LongcatShapeError(message("generate", "line", got, "a JSON object")) from error
    require(isinstance(value, dict), "generate", "line", described(value), "a JSON object")
    for key in value:
        require(key in KEYS, "generate", "line", f"an object with the key {described(key)}", f"of {', '.join(KEYS)}")
    return {key: one for key, one in value.items() if one is not None}


def _asked(index: int, own: dict[str, Any], config: LongcatFlashConfig, tokenizer: Tokenizer) -> Asked:
    given = [key for key in ("prompt", "ids") if key in own]
    require(len(given) == 1, "generate", "line", " and ".join(given) or "neither prompt nor ids", "one of prompt, ids")
    name = own.get("id")
    require(name is None or isinstance(name, str) or is_integer(name), "generate", "id", described(name),
            "a string or an integer")  # fmt: skip
    if "ids" in own:
        require(isinstance(own["ids"], list), "generate", "ids", described(own["ids"]), "a list of token ids")
        ids = own["ids"]
    else:
        _require_text("prompt", own["prompt"])
        ids = encode(tokenizer, own["prompt"], config.bos_token_id)
    (checked,) = check_prompts(config, [ids], own["max_new_tokens"])
    check_sampling(own["temperature"], own["top_k"], own["top_p"], "argmax", own["seed"])
    options = {key: own[key] for key in ("temperature", "top_k", "top_p", "seed")}
    options["stop"] = _stop(own["stop"], config)
    ids = checked.tolist()
    prompt = own["prompt"] if "prompt" in own else tokenizer.decode(ids, skip_special_tokens=True)
    return Asked(index, name, prompt, ids, own["max_new_tokens"], options)


def _stop(given: object, config: LongcatFlashConfig) -> list[str | int]:
    stops = given if isinstance(given, list) else [given]
    for one in stops:
        if isinstance(one, str):
            _require_text("stop", one)
            continue
        legal = is_integer(one) and 0 <= one < config.vocab_size
        require(legal, "generate", "stop", described(one), f"strings, and token ids in 0 .. {config.vocab_size - 1}")
    return stops


def _require_text(name: str, text: object) -> None:
    require(isinstance(text, str), "generate", name, described(text), "a string")
    require(text != "", "generate", name, "an empty text", "at least one character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"a text with a lone surrogate (character {error.start + 1})"
        raise LongcatShapeError(message("generate", name, got, "text of UTF-8")) from error
