"""What FP8 costs the tiny checkpoint: bits per byte of the held-out text and greedy agreement, by precision.

    python tools/tiny/tiny_precision.py                            # about two minutes on two cores
    python tools/tiny/tiny_precision.py --chapters 2 --json FILE

The unquantised weights of training are not in the repository, so the f32 values of the stored FP8 weights stand for
them. `bf16` rounds these, as a bf16 checkpoint would. `requantised` quantises them once more, with scales 1.41 times as
wide, so that hardly a value is on its new grid already; this costs as much as a first quantisation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

import longcat_ops
from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM, dequant_fp8
from longcat_ops.model.precision import Precision

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "longcat-tiny"
TEXT = FOLDER / "heldout.txt"
BOS, LONGEST = 1, 1024
PROMPT, NEW_TOKENS = 32, 64
BF16, F32 = torch.bfloat16, torch.float32
SCALE = "_scale_inv"
# name: what, dtype of the model, precision. The first one is what the others are compared with.
VARIANTS = {
    "f32": ("stored weights multiplied out, f32 activations", F32, "bf16"),
    "bf16": ("the same rounded to bf16, bf16 activations", BF16, "bf16"),
    "requantised": ("quantised once more, f32 activations", F32, "bf16"),
    "fp8_f32": ("FP8 weights, projections' activations FP8, the rest f32", F32, "fp8"),
    "fp8": ("FP8 weights, projections' activations FP8, the rest bf16", BF16, "fp8"),
}


def build(name: str) -> LongcatFlashForCausalLM:
    _, dtype, precision = VARIANTS[name]
    if name != "requantised":
        return LongcatFlashForCausalLM.from_pretrained(FOLDER, dtype=dtype, precision=precision, progress=False)
    tensors = requantised(load_file(FOLDER / "model.safetensors"))
    config = LongcatFlashConfig.from_pretrained(FOLDER)
    return LongcatFlashForCausalLM.from_state_dict(config, tensors, dtype, precision=Precision(precision))


def requantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every FP8 weight on a grid sqrt(2) times as wide."""
    found = dict(tensors)
    for name in [name for name in tensors if f"{name}{SCALE}" in tensors]:
        wide, s = dequant_fp8(tensors[name], tensors[f"{name}{SCALE}"], F32), tensors[f"{name}{SCALE}"] * math.sqrt(2)
        scale = s.repeat_interleave(128, 0).repeat_interleave(128, 1)[: wide.shape[0], : wide.shape[1]]
        found[name], found[f"{name}{SCALE}"] = (wide / scale).to(torch.float8_e4m3fn), s
    return found


def chapters(limit: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """(token ids with a BOS, bytes of their text) of each held-out chapter, cut to the length that was trained."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for chapter in TEXT.read_text(encoding="utf-8").split("\n\n")[:limit]:
        ids = tokenizer.encode(chapter.rstrip("\n") + "\n").ids[: LONGEST - 1]
        yield torch.tensor([BOS, *ids]), len(tokenizer.decode(ids).encode())


@torch.inference_mode()
def read(model: LongcatFlashForCausalLM, ids: Tensor) -> tuple[float, Tensor]:
    """Bits of a text, and the most likely token at every position, given the true text before it."""
    logits = model.prefill(model.new_cache(1, len(ids)), 0, ids[:-1]).logits
    nats = F.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
    return nats / math.log(2), logits.argmax(-1)


def write(model: LongcatFlashForCausalLM, ids: Tensor, new_tokens: int) -> Tensor:
    """The greedy continuation of the first tokens of a text."""
    whole = longcat_ops.generate(model, [ids[:PROMPT]], new_tokens, speculative=False, eos_token_id=-1)
    return whole.sequences[0][PROMPT:]


def common(a: Tensor, b: Tensor) -> int:
    """How many tokens two continuations share before the first that differs."""
    different = (a != b).nonzero()
    return int(different[0]) if len(different) else len(a)


def measure(limit: int | None = None, new_tokens: int = NEW_TOKENS, names: tuple[str, ...] = tuple(VARIANTS)) -> dict:
    """By variant, a list with an entry for each chapter: bits; and, compared with the first variant: agreed, at how
    many positions the most likely token is the same; same_tokens, of two greedy continuations until they part.
    """
    texts, variants, first = list(chapters(limit)), {}, None
    for name in names:
        model = build(name)
        found = [(*read(model, ids), write(model, ids, new_tokens)) for ids, _ in texts]
        first = first or found
        variants[name] = [
            {
                "bits": round(bits, 2),
                "agreed": int((best == other).sum()),
                "same_tokens": common(text, other_text),
            }
            for (bits, best, text), (_, other, other_text) in zip(found, first, strict=True)
        ]
    return {
        "new_tokens": new_tokens,
        "positions": [len(ids) - 1 for ids, _ in texts],
        "bytes": [size for _, size in texts],
        "variants": variants,
    }


def summary(facts: dict, name: str) -> dict[str, float]:
    """bits_per_byte; agreement, a share of the positions; same_tokens, their mean; identical, how many never part."""
    rows = facts["variants"][name]
    return {
        "bits_per_byte": sum(row["bits"] for row in rows) / sum(facts["bytes"]),
        "agreement": sum(row["agreed"] for row in rows) / sum(facts["positions"]),
        "same_tokens": sum(row["same_tokens"] for row in rows) / len(rows),
        "identical": sum(row["same_tokens"] == facts["new_tokens"] for row in rows),
    }


def table(facts: dict) -> str:
    lines = [
        "| weights and activations | bits per byte "
        f"| same most likely token, of {sum(facts['positions'])} positions "
        f"| greedy text: same tokens of {facts['new_tokens']}, mean | the same throughout, of {len(facts['bytes'])} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in facts["variants"]:
        v = summary(facts, name)
        rest = f"{v['agreement']:.4f} | {v['same_tokens']:.1f} | {v['identical']}"
        if name == next(iter(facts["variants"])):
            rest = "- | - | -"
        lines.append(f"| {VARIANTS[name][0]} | {v['bits_per_byte']:.4f} | {rest} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chapters", type=int, help="only the first ones")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    facts = measure(args.chapters, args.new_tokens)
    print(table(facts))
    if args.json:
        command = shlex.join(
            ["python", "tools/tiny/tiny_precision.py", *(sys.argv[1:] if arguments is None else arguments)]
        )
        facts |= {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "command": command}
        args.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
