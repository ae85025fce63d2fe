"""Requests for runs of a scheduler, given or drawn, and what each has to become."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from longcat_ops.engine.request import FinishReason
from longcat_ops.model.cache import PAGE_SIZE
from longcat_ops.model.passes import CHUNK

from .fake_engine_device import NOT_FINITE, Pace

STOP_IDS = frozenset({1, 2})  # of the engine
OWN_STOP = 3  # of requests that say so
ALL, NONE, MIXED = "all", "none", "mixed"


@dataclass(frozen=True)
class Spec:
    """A request to be. special: tokens at places of the continuation, counted from 0: a stop id, OWN_STOP or
    NOT_FINITE. arrival: before which call of `step`; None: when the request before it gets a token. abort: before
    which call of `step` it is aborted. calls: what its on_token does with its token of that number: ("abort", i),
    another request or itself, ("raise", 0), or ("step", 0), which is refused. fails: the chunk of its prompt that
    does."""

    prompt: int
    new: int
    accepts: str = MIXED
    special: tuple[tuple[int, int], ...] = ()
    ignore_eos: bool = False
    own_stop: bool = False
    temperature: float = 0.0
    arrival: int | None = 0
    abort: int | None = None
    calls: tuple[int, str, int] | None = None
    fails: int | None = None

    def token(self, seed: int, i: int) -> int:
        return dict(self.special).get(i, 10 + drawn(seed, i) % 1000)

    @property
    def claim(self) -> int:
        """Pages that it may come to need."""
        return -(-(self.prompt + self.new - 1) // PAGE_SIZE)

    def alone(self, seed: int) -> tuple[list[int], FinishReason]:
        """Its tokens one by one, and why they end."""
        tokens: list[int] = []
        if self.fails is not None and self.fails * CHUNK < self.prompt:
            return tokens, FinishReason.ERROR
        while len(tokens) < self.new:
            token = self.token(seed, len(tokens))
            if token == NOT_FINITE:
                return tokens, FinishReason.ERROR
            tokens.append(token)
            if self.calls and self.calls[0] == len(tokens) - 1 and self.calls[1] != "abort":
                return tokens, FinishReason.ERROR
            if token == OWN_STOP and self.own_stop:
                return tokens, FinishReason.STOP
            if token in STOP_IDS and not self.ignore_eos:
                return tokens, FinishReason.EOS
        return tokens, FinishReason.LENGTH


@dataclass(frozen=True)
class Case:
    """fails: iterations that fail. extra: pages beyond the largest claim; None: enough for all claims at once."""

    specs: tuple[Spec, ...]
    steps: int = 4
    drafts: int = 1
    max_batch: int = 4
    prefill_tokens: int = 512
    extra: int | None = None
    fails: tuple[int, ...] = ()
    pace: Pace = Pace.LATE
    seed: int = 0

    @property
    def ample(self) -> bool:
        return self.extra is None

    @property
    def num_pages(self) -> int:
        claims = [spec.claim for spec in self.specs]
        return sum(claims) if self.extra is None else max(claims) + self.extra


def drawn(seed: int, i: int) -> int:
    """A number of 30 bits that looks drawn."""
    x = (seed * 0x9E3779B1 + i * 0x85EBCA77 + 12345) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (x ^ (x >> 13)) >> 2


STOPS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, OWN_STOP])), max_size=2).map(tuple)
ENDS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, OWN_STOP, NOT_FINITE])), max_size=2).map(tuple)
ARRIVAL = st.one_of(st.just(0), st.none(), st.integers(0, 12))
CALLS = st.tuples(st.integers(0, 20), st.sampled_from(["abort", "abort", "abort", "raise", "step"]), st.integers(0, 7))
FAILS = dict(
    special=ENDS,
    abort=st.one_of(st.none(), st.none(), st.integers(0, 25)),
    calls=st.one_of(st.none(), st.none(), CALLS),
    fails=st.sampled_from([None, None, None, None, 1, 0]),
)


def _specs(**more: st.SearchStrategy) -> st.SearchStrategy[Spec]:
    given = dict(
        prompt=st.one_of(st.integers(1, 140), st.integers(1, 1100)),
        new=st.one_of(st.integers(1, 20), st.integers(1, 90)),
        accepts=st.sampled_from([MIXED, ALL, NONE]),
        special=STOPS,
        ignore_eos=st.booleans(),
        own_stop=st.booleans(),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
        arrival=ARRIVAL,
    )
    return st.builds(Spec, **{**given, **more})


def _cases(specs: st.SearchStrategy[Spec], **more: st.SearchStrategy) -> st.SearchStrategy[Case]:
    given = dict(
        specs=st.lists(specs, min_size=1, max_size=8).map(tuple),
        steps=st.integers(1, 8),
        drafts=st.integers(0, 3),
        max_batch=st.integers(1, 6),
        prefill_tokens=st.sampled_from([1, 64, 512, 700, 1024, 4096]),
        extra=st.one_of(st.none(), st.integers(0, 6)),
        pace=st.sampled_from(Pace),
        seed=st.integers(0, 1000),
    )
    return st.builds(Case, **{**given, **more})


def without_failures() -> st.SearchStrategy[Case]:
    """Each request ends by itself."""
    return _cases(_specs())


def any_case() -> st.SearchStrategy[Case]:
    """With aborts, at any time and from a callback, failures of prompts, iterations and callbacks, NaN."""
    fails = st.one_of(st.just(()), st.just(()), st.integers(0, 20).map(lambda at: (at,)))
    return _cases(_specs(**FAILS), fails=fails)


def short_of_pages() -> st.SearchStrategy[Case]:
    """Texts that grow by pages, in a pool for little more than one of them."""
    short = dict(prompt=st.integers(1, 130), new=st.integers(40, 300), ignore_eos=st.just(True))
    specs = st.one_of(_specs(**short), _specs(**short), _specs(**{**FAILS, **short}))
    return _cases(specs, extra=st.integers(0, 3), max_batch=st.integers(2, 6))
