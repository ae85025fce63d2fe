"""`evaluate` has the figures that whole models and plain formulas give."""

from __future__ import annotations

import math

import pytest
import torch

from longcat_ops import LongcatCheckpointError, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.engine import evaluate as module
from longcat_ops.engine.evaluate import evaluate
from longcat_ops.engine.measure import teacher_forced_acceptance
from longcat_ops.loading.quantize import quantize
from support import checkpoints, models

SIZES = dict(hidden_size=128, n_routed_experts=4, zero_expert_num=2)
BYTES = 1000


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint in bf16 and in FP8. Few tokens have large logits, so that some drafts are accepted."""
    root = tmp_path_factory.mktemp("made")
    tensors = {n: t if "router" in n else t.bfloat16() for n, t in models.tensors(models.config(**SIZES)).items()}
    tensors["lm_head.weight"][:58] *= 0.01
    checkpoints.write(root / "bf16", models.config(**SIZES), tensors)
    quantize(root / "bf16", root / "fp8")
    return root / "fp8", root / "bf16"


LONG = [models.prompt(530, seed=1), models.prompt(2, seed=3)]  # more than a chunk of a prompt, and the shortest one


@pytest.fixture(scope="module")
def texts():
    """No multiple of the head's rows."""
    return [models.prompt(140, seed=2), models.prompt(2, seed=3), models.prompt(70, seed=4)]


@torch.inference_mode()
def by_hand(folder, texts, **options):
    """Logits and rows behind each layer of a whole model, by hooks."""
    model = LongcatFlashForCausalLM.from_pretrained(folder, progress=False, **options)
    behind = [[] for _ in model.layers]
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: behind[i].append(out))
    logits = [model.prefill(model.new_cache(1, len(ids)), 0, ids).logits.double() for ids in texts]
    pairs = [teacher_forced_acceptance(model, ids) for ids in texts]
    return logits, [torch.cat(parts[: len(parts) // 2]) for parts in behind], pairs


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"precision": "bf16"}], ids=str)
def test_the_figures(folders, texts, options):
    (fp8, bf16), texts = folders, texts if options else LONG
    found = evaluate(fp8, texts, BYTES, against=bf16, **options)
    sides = [by_hand(fp8, texts, **options), by_hand(bf16, texts, **{k: v for k, v in options.items() if k == "dtype"})]
    wanted = torch.cat([ids[1:] for ids in texts])
    logs = [torch.cat([log[:-1] for log in logits]).log_softmax(-1) for logits, _, _ in sides]
    count = len(wanted)
    assert (found.tokens, found.bytes, found.windows) == (count, BYTES, len(texts)) and count > 200
    for quality, log, (_, _, pairs), path in zip((found.checkpoint, found.other), logs, sides, folders, strict=True):
        nats = -log[torch.arange(len(wanted)), wanted]
        assert quality.nats_per_token == pytest.approx(float(nats.mean()), rel=1e-9)
        assert quality.bits_per_byte == pytest.approx(float(nats.sum()) / math.log(2) / BYTES, rel=1e-9)
        agreed, positions = (sum(each) for each in zip(*pairs, strict=True))
        assert quality.drafts == positions == count and quality.path == str(path)
        assert quality.acceptance == agreed / positions and 0.1 < quality.acceptance < 0.9
    p, q = logs[1], logs[0]
    kl = (p.exp() * (p - q)).sum(-1)
    assert found.difference.kl == pytest.approx(float(kl.mean()), rel=1e-9) and kl.mean() > 0
    same = sum(
        int((a[:-1].argmax(-1) == b[:-1].argmax(-1)).sum()) for a, b in zip(sides[0][0], sides[1][0], strict=True)
    )
    assert found.difference.agreement == same / count <= 1
    errors = [
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(*(s[1] for s in sides), strict=True)
    ]
    assert found.difference.layers == pytest.approx(errors, rel=1e-9) and min(errors) > 1e-3


def test_a_checkpoint_beside_itself(folders, texts):
    found = evaluate(folders[0], texts, BYTES, against=folders[0])
    assert (found.difference.agreement, found.difference.kl, found.difference.layers) == (1.0, 0.0, [0.0, 0.0])
    assert found.checkpoint == found.other == evaluate(folders[0], texts, BYTES).checkpoint


def test_alone_and_without_an_mtp_head(tmp_path, texts):
    config = models.config(**SIZES, num_nextn_predict_layers=0)
    checkpoints.write(tmp_path, config, models.tensors(config, mtp=False))
    seen = []
    found = evaluate(tmp_path, texts, BYTES, progress=lambda *each: seen.append(each))
    assert found.other is found.difference is None and seen == [(1, 2), (2, 2)]
    assert (found.checkpoint.acceptance, found.checkpoint.drafts) == (None, 0)


def test_the_rows_of_a_slice_change_nothing(folders, texts, monkeypatch):
    whole = evaluate(folders[0], texts, BYTES, against=folders[1])
    monkeypatch.setattr(module, "ROWS", 37)
    parts = evaluate(folders[0], texts, BYTES, against=folders[1])
    assert parts.checkpoint.bits_per_byte == pytest.approx(whole.checkpoint.bits_per_byte, rel=1e-12)
    assert parts.checkpoint.acceptance == whole.checkpoint.acceptance
    assert parts.difference.kl == pytest.approx(whole.difference.kl, rel=1e-9)


def test_refusals(folders, texts, tmp_path):
    other = models.config(hidden_size=64)
    checkpoints.write(tmp_path / "other", other, models.tensors(other))
    with pytest.raises(LongcatShapeError, match="`against` is a network with hidden_size 64, expected 128"):
        evaluate(folders[0], texts, BYTES, against=tmp_path / "other")
    with pytest.raises(LongcatCheckpointError, match="does not exist"):
        evaluate(folders[0], texts, BYTES, against=tmp_path / "nothing")
    with pytest.raises(LongcatShapeError, match="evaluate: argument `text` is empty"):
        evaluate(folders[0], [], BYTES)
