"""A request to an engine: what it asks for, and what it has so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from ..errors import LongcatError
from .text import TextStream

OnToken = Callable[["Request", int], object]


class FinishReason(Enum):
    """Why a request has ended."""

    EOS = "eos"  # one of the engine's stop ids
    STOP = "stop"  # one of its own stop ids or strings
    LENGTH = "length"  # max_new_tokens
    ABORTED = "aborted"
    ERROR = "error"  # see Request.error


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"  # for a slot and pages
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Decoder(Protocol):
    """Turns token ids into text: a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Stops:
    """What ends one request beside its length. ids, strings: of its own. ignore_eos: the engine's stop ids do not."""

    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(eq=False)
class Request:
    """One prompt and its continuation. An `Engine` makes it and writes it; callers read it.

    tokens: new tokens, the one that ended it included. text: of them, where the engine has a tokenizer, up to a stop
    string and without it. token_times: time.perf_counter() at which the host learned each token; submitted: of
    `submit`. steps: of the target behind the prompt that gave it tokens.
    """

    number: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stops: Stops = Stops()
    on_token: OnToken | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: LongcatError | None = None
    state: State = State.WAITING
    steps: int = 0  # passes of the target behind the prompt's
    drafted: int = 0
    accepted: int = 0
    ffn_experts: int = 0  # chosen by its new tokens, over all layers
    submitted: float = field(default_factory=time.perf_counter)
    token_times: list[float] = field(default_factory=list)
    stream: TextStream | None = None  # of an engine with a tokenizer

    @property
    def done(self) -> bool:
        return self.state is State.FINISHED

    @property
    def aborted(self) -> bool:
        return self.finish_reason is FinishReason.ABORTED

    @property
    def length(self) -> int:
        """Tokens of the text, as far as the host knows."""
        return len(self.prompt) + len(self.tokens)

    @property
    def limit(self) -> int:
        """Tokens that the text may have."""
        return len(self.prompt) + self.max_new_tokens

    def take(self, token: int, eos: frozenset[int]) -> FinishReason | None:
        """One more token; why the request has ended with it, or None. The caller sets `finish_reason`."""
        self.tokens.append(token)
        self.token_times.append(time.perf_counter())
        reason = None
        if token in self.stops.ids:
            reason = FinishReason.STOP
        elif token in eos and not self.stops.ignore_eos:
            reason = FinishReason.EOS
        elif len(self.tokens) == self.max_new_tokens:
            reason = FinishReason.LENGTH
        if self.stream is not None:
            piece = self.stream.push(token)
            if self._add_text(piece if reason is None else piece + self.stream.finish()):
                return FinishReason.STOP
        return reason

    def _add_text(self, piece: str) -> bool:
        """More text; whether a stop string is in it, ahead of the first of which the text then ends."""
        before, self.text = self.text, self.text + piece
        starts = (self.text.find(stop, max(0, len(before) - len(stop) + 1)) for stop in self.stops.strings)
        found = [at for at in starts if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)
