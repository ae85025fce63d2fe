"""Waits for other ranks: each has a deadline, and says who is missing.

Every call posts its number, its stage and its text to the store of the process group when it starts, and again at each
later stage: 2 us each, since a TCPStore is not asked for an answer. A wait reads nothing for its first SLICE_S. Then it
marks its own post as waiting and reads what the others posted, once per SLICE_S, until it learns why it waits:

- another rank has recorded a failure, refused the call, made another call or closed its communicator;
- the process of another rank has ended;
- the deadline has passed: missing is who has not come as far, or who is there and does not wait.

The first failure is recorded in the store, so every rank raises the same one, and poisons the communicator.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from ..errors import LongcatCommError, LongcatError, LongcatTimeoutError
from .background import Background, Work
from .posts import Post, Record
from .processes import Process, has_ended
from .store import Client

SLICE_S = 0.05
# The data of a rank that has ended gets this long to arrive.
GRACE_S = 0.5
# Where no deadline is set, a broken connection still ends the wait after this long.
BROKEN_S = 30.0
KEPT_REFUSALS = 8


class GivenUp(Exception):
    """Another rank could not build what this one was building."""


class Watch:
    """The posts of one communicator, or of `what` else ranks construct together. store: for it alone, over `client`.
    timeout_s: 0 waits for ever."""

    def __init__(
        self, client: Client, store: Any, rank: int, ranks: int, timeout_s: float, num_channels: int,
        what: str = "Communicator",
    ) -> None:  # fmt: skip
        self.client, self.store, self.rank, self.ranks, self.timeout_s = client, store, rank, ranks, timeout_s
        self.what = what
        self._noun = "communicator" if what == "Communicator" else what
        self.failure: LongcatError | None = None
        self.closed = False
        self.processes: list[Process] = []
        self.channels = [ChannelWatch(self, i) for i in range(num_channels)]
        self.vote = ""  # while a rung is built: the stage in which ranks say whether they could
        self._keys = ["failure", "closed"]
        store.compare_set("failure", "", "")
        for channel in self.channels:
            channel.send()

    def gather(self, stage: str, value: Any) -> list[Any]:
        """Every rank's `value`, of JSON, in rank order. Collective: each stage has another name."""
        keys = [f"{stage}/{r}" for r in range(self.ranks)]
        self._keys += keys
        self.store.set(keys[self.rank], json.dumps(value))
        start, pause = time.monotonic(), 0.0005
        while not self.client.ask(lambda: self.store.check(keys)):
            time.sleep(pause)
            pause = min(2 * pause, SLICE_S / 2)
            if error := self._problem(stage, keys, time.monotonic() - start):
                raise self.poison(error)
        if (texts := self.client.ask(lambda: self.store.multi_get(keys))) is None:
            text = f"{self.what}: the store of the process group does not answer in stage `{stage}`."
            raise self.poison(LongcatCommError(text))
        return [json.loads(text) for text in texts]

    def finish(self, stage: str, work: Background) -> Any:
        """The value of `work`, a stage that all ranks enter. Raises what it raised, or who is missing."""
        start = time.monotonic()
        while True:
            try:
                return work.wait(timedelta(seconds=SLICE_S))
            except Exception:
                if work.is_completed():  # perhaps just after the slice
                    return work.wait(timedelta(seconds=SLICE_S))
            if error := self._problem(stage, [], time.monotonic() - start):
                raise self.poison(error)

    def _problem(self, stage: str, keys: list[str], waited: float) -> LongcatError | None:
        """Why a stage of the construction cannot end. Raises GivenUp if a rank has voted against what is built."""
        if self.failure:
            return self.failure
        if record := Record.loads(self.client.ask(lambda: self.store.get("failure")) or b""):
            return record.error(self.rank)
        if self.vote not in ("", stage) and any(self._objects(f"{self.vote}/{r}") for r in range(self.ranks)):
            raise GivenUp
        late = self.timeout_s and waited > self.timeout_s
        ended = self.ended() if waited > GRACE_S else {}
        if not late and not ended:
            return None
        missing = [r for r, key in enumerate(keys) if not self.has(key)]
        seen = {r: ended.get(r, "has not come") for r in missing if late or r in ended} if keys else ended
        if not seen and not late:
            return None
        return LongcatTimeoutError(self.rank, self.what, f"stage `{stage}`", 1, seen, f"waited {waited:.1f} s")

    def has(self, key: str) -> bool:
        return bool(self.client.ask(lambda: self.store.check([key])))

    def _objects(self, key: str) -> bool:
        """Whether the vote `key` is there and gives a reason."""
        return self.has(key) and self.client.ask(lambda: self.store.get(key)) not in (None, b'""')

    def ended(self) -> dict[int, str]:
        """The ranks whose process is known to have ended."""
        if not self.processes:
            return {}
        here = self.processes[self.rank]
        return {r: f"its {p} has ended" for r, p in enumerate(self.processes) if has_ended(p, here)}

    def poison(self, error: LongcatError, announce: bool = True) -> LongcatError:
        """Makes `error` the failure of this communicator. The one to raise: what was recorded first, here or by another
        rank."""
        if self.failure is None:
            self.failure = error
            if announce:
                mine = Record.of(error, self.rank).dumps()
                found = self.client.ask(lambda: self.store.compare_set("failure", "", mine))
                first = Record.loads(found) if found else None
                if first and first.by != self.rank:
                    self.failure = first.error(self.rank)
        return copy.copy(self.failure)  # one that is raised holds the frames it passed

    def check(self) -> None:
        """Raises if the communicator is closed or poisoned, by any rank. Asks the store once."""
        self.require_open("check")
        if record := Record.loads(self.client.ask(lambda: self.store.get("failure")) or b""):
            raise self.poison(record.error(self.rank), announce=False)

    def require_open(self, op: str) -> None:
        """Raises LongcatCommError if no call can be served."""
        if self.closed:
            raise LongcatCommError(f"{op}: this {self._noun} is closed.")
        if self.failure is not None:
            fix = f"close it, form a group of the ranks that are left, and make a new {self.what} over it"
            raise LongcatCommError(f"{op}: this {self._noun} is poisoned. {self.failure}\n  fix: {fix}")

    def close(self) -> None:
        """Posts that this rank has closed. The last of all ranks removes what they posted."""
        self.closed = True
        for channel in self.channels:
            channel.post.closed = True
            channel.send()
        keys = [*self._keys, *(f"post/{c.index}/{r}" for c in self.channels for r in range(self.ranks))]

        def leave() -> None:
            if self.store.add("closed", 1) == self.ranks:
                for key in keys:
                    self.store.delete_key(key)

        self.client.ask(leave)


class ChannelWatch:
    """The calls of one channel, one after another."""

    def __init__(self, watch: Watch, index: int) -> None:
        self.watch, self.index = watch, index
        self.post = Post()
        self.op = ""
        self._since = 0.0

    @property
    def slot(self) -> str:
        return f"channel {self.index}, stage `{self.post.stage}`"

    def begin(self, op: str) -> None:
        """Counts the next call, also one that will be refused, so that ranks stay in step."""
        self.op = op
        self.post = Post(call=self.post.call + 1, refused=self.post.refused)

    def enter(self, text: str, stage: str) -> None:
        """The call is legal. text: the same on every rank of a right program."""
        self.post.text, self.post.stage = text, stage
        self._since = time.monotonic()
        self.send()

    def advance(self, stage: str) -> None:
        """The call has come to its next stage."""
        self.post.step, self.post.stage, self.post.waiting = self.post.step + 1, stage, False
        self.send()

    def refuse(self, error: Exception) -> None:
        """This rank does not run the call. The others raise its error, if they do not refuse the call, too."""
        self.post.refused = [*self.post.refused[1 - KEPT_REFUSALS :], (self.post.call, str(error))]
        self.send()

    def send(self) -> None:
        if not self.watch.client.is_silent():
            with suppress(Exception):  # a store that is gone is found when it is read
                self.watch.store.set(f"post/{self.index}/{self.watch.rank}", self.post.dumps())

    def wait(self, work: Work) -> None:
        """Returns when `work` has ended well. Raises why it cannot, before or at the deadline."""
        broken: Exception | None = None
        while True:
            try:
                if broken is None:
                    work.wait(timedelta(seconds=SLICE_S))
                    return
                time.sleep(SLICE_S)
            except Exception as error:
                if work.is_completed():
                    broken = self._result(work, error)
                    if broken is None:
                        return
            if error := self.find_cause(time.monotonic() - self._since, broken):
                raise self.watch.poison(error)

    @staticmethod
    def _result(work: Work, error: Exception) -> Exception | None:
        """How completed work has ended. It may have ended just after a slice, so `error` may be the slice's."""
        try:
            work.wait(timedelta(seconds=SLICE_S))
        except Exception as again:
            return again or error
        return None

    def disagree(self, text: str) -> LongcatError:
        """The error of a call whose data is not what this rank expects; `text` if no post says why."""
        until = time.monotonic() + GRACE_S
        while time.monotonic() < until:
            if error := self.find_cause(0.0, None):
                return self.watch.poison(error)
            time.sleep(SLICE_S / 5)
        return self.watch.poison(LongcatCommError(f"{self.op}: {text}"))

    def find_cause(self, waited: float, broken: Exception | None) -> LongcatError | None:
        """Why a wait of `waited` seconds cannot end; None if it still can."""
        if self.watch.failure is not None:
            return self.watch.failure
        if self.watch.closed:
            return LongcatCommError(f"{self.op}: rank {self.watch.rank} closed its communicator while this call ran.")
        if not self.post.waiting and waited:
            self.post.waiting = True
            self.send()
        answer = self._read()
        if answer is not None:
            record, posts = answer
            if record:
                return record.error(self.watch.rank)
            if error := next(self._disagreements(posts), None):
                return error
        ended = self.watch.ended() if waited > GRACE_S or broken else {}
        limit = self.watch.timeout_s or (BROKEN_S if broken else 0)
        late = bool(limit) and waited > limit
        if not ended and not late:
            return None
        note = f"waited {waited:.1f} s" + (f"; the connection failed: {broken}" if broken else "")
        if answer is None:
            return self._timeout(ended, note + "; the store of the process group does not answer")
        if ended:
            return self._timeout({r: f"{text}; {posts[r]}" for r, text in ended.items()}, note)
        return self._timeout(self._missing(posts), note)

    def _read(self) -> tuple[Record | None, dict[int, Post]] | None:
        keys = ["failure", *(f"post/{self.index}/{r}" for r in range(self.watch.ranks))]
        answer = self.watch.client.ask(lambda: self.watch.store.multi_get(keys))
        if answer is None:
            return None
        posts = {r: Post.loads(text) for r, text in enumerate(answer[1:]) if r != self.watch.rank}
        return Record.loads(answer[0]), posts

    def _disagreements(self, posts: dict[int, Post]) -> Iterator[LongcatError]:
        mine, op = self.post, self.op
        own = {call for call, _ in mine.refused}
        known = min(own) if len(own) == KEPT_REFUSALS else 0  # from this call on
        for r, post in posts.items():
            # Perhaps an earlier call: where kernels wait in place of the host, this rank has gone on.
            alone = {call: text for call, text in post.refused if known <= call <= mine.call and call not in own}
            if alone:
                call = min(alone)
                yield LongcatCommError(f"{op}: rank {r} refused its call {call}. {alone[call]}")
            elif post.call == mine.call and post.text and post.text != mine.text:
                got = f"rank {r} called `{post.text}`, rank {self.watch.rank} called `{mine.text}`"
                yield LongcatCommError(f"{op}: ranks disagree about call {mine.call} of channel {self.index}: {got}.")
            elif post.closed and post.call < mine.call:
                yield LongcatCommError(f"{op}: rank {r} {post}, and this is call {mine.call}.")

    def _missing(self, posts: dict[int, Post]) -> dict[int, str]:
        """Who has not come to this stage; if all have, who is in it and does not wait."""
        here = (self.post.call, self.post.step)
        behind = {r: str(p) for r, p in posts.items() if (p.call, p.step) < here}
        stalled = {r: f"stands still, {p}" for r, p in posts.items() if (p.call, p.step) == here and not p.waiting}
        return behind or stalled

    def _timeout(self, seen: dict[int, str], note: str) -> LongcatTimeoutError:
        return LongcatTimeoutError(self.watch.rank, self.op, self.slot, self.post.call, seen, note)
