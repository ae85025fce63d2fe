"""Fixtures of the CLI tests: a small random checkpoint with a tokenizer, its model, one thread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer

from longcat_ops import LongcatFlashForCausalLM
from support import models

TOY = "and it came to pass in those days that the king went up and the people with him\n" * 8
VOCAB = 288


def train_tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE in the published layout: ids 0 .. 2 are special, all 256 bytes follow, then the merges."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TOY],
        BpeTrainer(
            vocab_size=vocab, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return tokenizer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread slows down matrices this small, and more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout. Only two tokens have large logits, so that some drafts are accepted."""
    folder = tmp_path_factory.mktemp("model")
    changes = {"vocab_size": VOCAB, "max_position_embeddings": 128, "eos_token_id": None}
    tensors = models.tensors(models.config(**changes), mtp=True)
    tensors["lm_head.weight"][:260] *= 0.01
    tensors["lm_head.weight"][262:] *= 0.01
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(models.BASE | changes))
    train_tokenizer(VOCAB).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def model(checkpoint) -> LongcatFlashForCausalLM:
    return LongcatFlashForCausalLM.from_pretrained(checkpoint, progress=False)
