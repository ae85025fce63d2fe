"""The questions that only a machine can answer, and its answers in words. docs/hardware.md lists the questions; a
report has the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Answered = dict[str, dict[str, Any]]  # of the steps that passed, by name


@dataclass(frozen=True)
class Question:
    """steps: beginnings of the names of the steps that answer it. say: puts their answers into words."""

    text: str
    steps: tuple[str, ...]
    say: Callable[[Answered], str]


def _beside(answers: Answered) -> str:
    parts = []
    for carveout in ("default", "largest"):
        entered = [a["smem"] for a in answers.values() if a[carveout]["entered"]]
        parts.append(f"{carveout} carve-out: entered beside {len(entered)} of {len(answers)} block sizes")
    return "Same bits beside every block. " + "; ".join(parts) + "."


def _entries(answers: Answered) -> str:
    parts = []
    for name, answer in answers.items():
        kernels = answer["kernels"]
        words = [f"{k} {kernels[k]['early_share']:.0%} early, {kernels[k]['first_waited_us']:.2f} us"
                 for k in ("gate_up", "down", "moe_combine") if k in kernels]  # fmt: skip
        parts.append(f"{name.split('-', 1)[1]}: {', '.join(words)}")
    return (
        "Share of blocks that entered before the kernel ahead had ended, and how long the first waited. "
        + "; ".join(parts)
    )


def _clusters(answers: Answered) -> str:
    found = {
        (launch["name"], launch["cluster"]): (launch["resident"], launch["grid"] // launch["cluster"])
        for answer in answers.values()
        for launch in answer["launches"]
        if launch["cluster"] > 1
    }
    words = [
        f"{name} in clusters of {cluster}: {resident} fit, {started} are launched"
        for (name, cluster), (resident, started) in found.items()
    ]
    return "; ".join(words) or "No launch of these runs had clusters."


def _boxes(answers: Answered) -> str:
    rows = [f"{a['sms']}: {a['gb_per_s_of_one']:.0f} each, {a['gb_per_s']:.0f} in all" for a in answers.values()]
    return "GB/s by multiprocessors that read: " + "; ".join(rows) + "."


def _two_back(answers: Answered) -> str:
    (answer,) = answers.values()
    return f"Yes: {answer['wrong']} of {answer['words']} words were not seen."


def _replays(answers: Answered) -> str:
    return "Yes: the tests that capture and replay passed, first calls included."


def _multicast(answers: Answered) -> str:
    (answer,) = answers.values()
    return f"Status of creating an object of one device: {answer['create_status_of_1']}, of two: " + str(
        answer["create_status_of_2"]
    )


COLLECTIVES = ("values-N8", "values-N4", "values-N2", "rows-N8", "in_a_row-N8", "graphs-N8", "failures-N8")


def _collectives(answers: Answered) -> str:
    own = {name.removeprefix("collectives/"): answer for name, answer in answers.items()}
    missing = [name for name in COLLECTIVES if name not in own]
    shown = {name: own[name]["calls" if name != "graphs-N8" else "replays"] for name in COLLECTIVES if name in own}
    words = [f"Calls with the bits of the host (replays of graphs), by step: {shown}"]
    if "failures-N8" in own:
        failed = own["failures-N8"]
        words.append(f"ranks that waited {failed['timeout_s']} s in vain ended after {failed['longest_s']} s")
    if "times-N8" in own:
        times = own["times-N8"]
        slow = {True: "", False: " (with the host's launches)"}
        listed = ", ".join(f"{form} {time['us']}{slow[time['queued']]}" for form, time in times["times"].items())
        words.append(f"us per call ({times['what']}): {listed}")
    if "multicast" in own:
        words.append(f"kernels for multicast memory: {own['multicast']['multicast']}")
    return ("Yes. " if not missing else f"Not all of it was shown ({', '.join(missing)}). ") + "; ".join(words) + "."


QUESTIONS = [
    Question("Does the small product keep its bits, and does it enter at all, beside a block that holds shared memory?",
             ("residency/beside-",), _beside),
    Question("Do the blocks of the products enter beside the kernel ahead of them, with and without a carve-out?",
             ("residency/entry_times-",), _entries),
    Question("Does a launch see, before it has waited, what the one two launches back wrote?",
             ("residency/two_launches_back",), _two_back),
    Question("Do pairs of blocks fill all multiprocessors?", ("residency/entry_times-",), _clusters),
    Question("Do the collectives' protocols hold on the chip with N ranks on one GPU?",
             ("collectives/",), _collectives),
    Question("What does one multiprocessor read by TMA, and how many fill the memory's bandwidth?",
             ("rates/box-",), _boxes),
    Question("Does an op's first call work inside a stream capture, and do replays with other routing agree?",
             ("graphs/replays", "graphs/gpu"), _replays),
    Question("Can one device make a multicast object?", ("rates/multicast",), _multicast),
]  # fmt: skip


def answered(question: Question, answers: Answered) -> str:
    """The answer in words. It says so if no step for the question has passed, or if an answer lacks a value."""
    own = {name: answer for name, answer in answers.items() if name.startswith(question.steps)}
    if not own:
        return "Not answered: none of its steps has passed."
    try:
        return question.say(own)
    except (KeyError, ValueError, TypeError) as error:
        return f"Not answered: an answer lacks {error}."
