"""Writes the table of docs/precision.md: what FP8 costs longcat-tiny, quantised from its bf16 form by each policy.

python tools/pages/precision_page.py            # measure anew, about two minutes on one core; renew table and record
python tools/pages/precision_page.py --check    # exit 1 if the page is not what the record of this checkpoint says

Policies: none, all, and auto, calibrated on the first two chapters of heldout.txt. The other chapters are evaluated,
each as texts of 1024 tokens at most, beside the bf16 form. The record, docs/results/precision.json, has the hashes of
checkpoint and text.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python")] if str(ROOT / "python") not in sys.path else []

from longcat_ops.engine.evaluate import Evaluation, evaluate  # noqa: E402
from longcat_ops.engine.text import load_tokenizer, windows  # noqa: E402
from longcat_ops.loading.quantize import quantize  # noqa: E402

FOLDER = ROOT / "checkpoints" / "longcat-tiny"
PAGE, RECORD = ROOT / "docs" / "precision.md", ROOT / "docs" / "results" / "precision.json"
BEGIN, END = "<!-- table: tools/pages/precision_page.py -->\n", "<!-- end of table -->\n"
POLICIES = ("none", "all", "auto")
CALIBRATED, LENGTH, BOS = 2, 1024, 1
SAMPLE = 200  # tokens of the last chapter: what a test measures anew


def chapters() -> list[tuple[list[torch.Tensor], int]]:
    """Pieces and bytes of each held-out chapter."""
    tokenizer = load_tokenizer(FOLDER)
    texts = (FOLDER / "heldout.txt").read_text(encoding="utf-8").split("\n\n")
    return [windows(tokenizer, text.rstrip("\n") + "\n", BOS, LENGTH) for text in texts]


def sources() -> dict[str, str]:
    """Hashes of what the figures are of."""
    names = ("model.safetensors", "config.json", "tokenizer.json", "heldout.txt")
    return {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in names}


def convert(folder: Path, policy: str) -> tuple[Path, Path, int, int]:
    """(the bf16 form, its form by a policy, bytes of the weights of that, how many projections in it are FP8)."""
    bf16, made = folder / "bf16", folder / policy
    quantize(FOLDER, bf16, to="bf16")
    text = [piece for pieces, _ in chapters()[:CALIBRATED] for piece in pieces] if policy == "auto" else []
    done = quantize(bf16, made, policy=policy, text=text)
    return bf16, made, done.bytes_written, done.fp8


def sample(folder: Path) -> Evaluation:
    """Of the first tokens of the last chapter, for policy all."""
    bf16, made, _, _ = convert(folder, "all")
    pieces, _ = chapters()[-1]
    return evaluate(made, [pieces[0][:SAMPLE]], SAMPLE, against=bf16)


def measure() -> dict:
    judged = chapters()[CALIBRATED:]
    pieces, size = [piece for some, _ in judged for piece in some], sum(size for _, size in judged)
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for policy in POLICIES:
            bf16, made, weights, fp8 = convert(Path(folder), policy)
            found = asdict(evaluate(made, pieces, size, against=bf16))
            rows[policy] = {"mb": round(weights / 1e6, 2), "fp8": fp8, **_rounded(found["checkpoint"])}
            rows[policy] |= _rounded(found["difference"])
            del rows[policy]["path"]
        units = json.loads((Path(folder) / "auto" / "calibration.json").read_text(encoding="utf-8"))["units"]
        small = _rounded(asdict(sample(Path(folder))))
    facts = {"tokens": found["tokens"], "bytes": found["bytes"], "sources": sources(), "policies": rows}
    facts["sample"] = {**small["checkpoint"], **small["difference"], "path": "all"}
    facts |= {"largest_input": max(u["max_input"] for u in units), "largest_error": max(u["relative"] for u in units)}
    return facts | {"torch": torch.__version__, "date": datetime.date.today().isoformat()}


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def table(record: dict) -> str:
    lines = [
        f"{record['date']}, torch {record['torch']}, one thread, {record['tokens']:,} tokens. Largest input in the "
        f"calibration: {record['largest_input']:g}, largest relative error of a block: {record['largest_error']:.4f}.",
        "",
        "| policy | projections in FP8 | weights, MB | bits a byte | drafts accepted | same most likely token "
        "| KL, nats a token | error behind each layer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for policy, row in record["policies"].items():
        errors = ", ".join(f"{error:.4f}" for error in row["layers"])
        lines.append(
            f"| {policy} | {row['fp8']} | {row['mb']:.2f} | {row['bits_per_byte']:.4f} | {row['acceptance']:.4f} "
            f"| {row['agreement']:.4f} | {row['kl']:.5f} | {errors} |"
        )
    return "\n".join(lines) + "\n"


def renewed(text: str, record: dict) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args(arguments).check:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        text = PAGE.read_text(encoding="utf-8")
        current = record["sources"] == sources() and text == renewed(text, record)
        print("up to date" if current else f"{PAGE.name} is stale: python tools/pages/precision_page.py")
        return 0 if current else 1
    torch.set_num_threads(1)
    record = measure()
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
