"""A built model accepts new weights, copies and autocast, and refuses casts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable

import pytest
import torch

from longcat_ops import (
    LongcatCheckpointError,
    LongcatFlashForCausalLM,
    LongcatUnsupportedError,
    generate,
)
from longcat_ops.loading.checkpoint import expected_tensors
from longcat_ops.model.layers import MLA
from longcat_ops.model.precision import Precision
from support import models

pytestmark = pytest.mark.long

KINDS = {
    "fp32": dict(dtype=torch.float32),
    "fp64": dict(dtype=torch.float64),
    "bf16": dict(dtype=torch.bfloat16),
    "fp8": dict(dtype=torch.bfloat16, precision="fp8"),
}
IDS = torch.stack([models.prompt(9, seed=3), models.prompt(9, seed=4)])


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def results(model):
    """Logits of prefill and decode, and of the MTP head's drafts."""
    cache = model.new_cache(2, 20)
    prefill, hidden = model(IDS[:, :6], cache, return_hidden=True)
    decoded = [model(IDS[:, i : i + 1], cache) for i in range(6, 9)]
    draft = model.draft_prefill(cache, 0, IDS[0, 1:7], hidden[0])
    more = model.draft_decode(cache, [0], [6], IDS[0, 7:8], hidden[0, -1:])
    return torch.cat([prefill, *decoded], 1), model.head(draft), model.head(more)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(results(a), results(b), strict=True))


def own_embedding(kind, seed):
    c = models.config()
    weights = models.tensors(c, seed, mtp_embedding=True)
    return LongcatFlashForCausalLM.from_state_dict(
        c, weights, kind["dtype"], precision=Precision(kind.get("precision"))
    )


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("build", [lambda kind, seed: models.build(seed=seed, **kind), own_embedding])
def test_a_loaded_state_is_all_there_is(kind, build, inference, assign):
    with torch.inference_mode(inference):
        a, b = build(kind, 0), build(kind, 1)
        results(a), generate(a, IDS, 3)  # everything that is built on first use now exists
        assert not equal(a, b)
        a.load_state_dict(b.state_dict(), assign=assign)
        assert equal(a, b)
    assert equal(a, b)


WRITES = {
    "copy_": lambda t, new: t.copy_(new),
    "add_": lambda t, new: t.add_((new.float() - t.float()).to(t.dtype)),
    "data": lambda t, new: t.data.copy_(new),
    "numpy": lambda t, new: t.view(torch.uint8).numpy().__setitem__(..., new.contiguous().view(torch.uint8).numpy()),
    "view": lambda t, new: t.view(-1)[:].copy_(new.view(-1)),
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("inference", [False, True])
def test_weights_written_in_place(kind, way, inference):
    a, b = models.build(seed=0, **kind), models.build(seed=1, **kind)
    results(a)
    new = dict(b.named_buffers())
    with torch.inference_mode(inference):
        for name, t in a.named_buffers():
            if ".w_k" in name or ".router_split" in name:
                continue  # computed by the model
            if t.dtype == torch.float8_e4m3fn:
                t.view(torch.uint8).copy_(new[name].view(torch.uint8))
            else:
                WRITES[way](t, new[name])
    if way == "add_":  # add_ rounds: b takes the values that a now holds
        b.load_state_dict(a.state_dict())
    assert equal(a, b)


def one_of_each(names: Iterable[str]) -> list[str]:
    """The names of one layer, and of its experts only the third's."""
    return [n for n in names if ".1.mlp" not in n and ("experts." not in n or ".experts.2." in n)]


@pytest.mark.parametrize("name", one_of_each(expected_tensors(models.config(), mtp=True)))
def test_each_published_tensor_counts_wherever_it_went(name):
    """After an in-place write of one stored tensor, the model equals one built from the new weights."""
    c = models.config()
    weights = models.tensors(c)
    a = LongcatFlashForCausalLM.from_state_dict(c, weights, torch.float64)
    weights[name] = weights[name] * 1.5 + torch.linspace(-0.5, 0.5, weights[name].numel()).view(weights[name].shape)
    b = LongcatFlashForCausalLM.from_state_dict(c, weights, torch.float64)
    before = [t.clone() for t in results(a)]
    with torch.inference_mode():
        for t, new in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            if not torch.equal(t, new):
                t.data.copy_(new)
    assert not all(torch.equal(x, y) for x, y in zip(before, results(b), strict=True))
    assert equal(a, b)


def test_a_write_that_only_moves_values_is_seen():
    """Derived weights follow a write that reverses rows or columns, rotates rows or flips signs."""
    for moved in (lambda w: w.flip(0), lambda w: w.flip(1), lambda w: w.roll(1, 0), lambda w: -w):
        a, b = models.build(), models.build()
        results(a)
        for model in (a, b):
            for module in model.modules():
                if isinstance(module, MLA):
                    module.kv_b_proj.data.copy_(moved(module.kv_b_proj.clone()))
        b = copy.deepcopy(b)
        assert equal(a, b)
        assert torch.equal(a.layers[0].self_attn[0].w_k[0].T, a.layers[0].self_attn[0].kv_b_proj[:16])


def test_writes_between_two_decode_passes():
    a, cache = models.build(), None
    cache = a.new_cache(2, 20)
    a(IDS[:, :6], cache)
    a(IDS[:, 6:7], cache)
    twin = copy.deepcopy(cache)
    for module in a.modules():
        if isinstance(module, MLA):
            module.kv_b_proj.mul_(1.5)
    fresh = models.build()
    fresh.load_state_dict(a.state_dict())
    fresh.follow_weights()
    rows = [0, 1], [7, 7], IDS[:, 7]
    assert torch.equal(a.decode(cache, *rows).logits, fresh.decode(twin, *rows).logits)


def test_states_that_do_not_fit_change_nothing(kind):
    a, b = models.build(seed=0, **kind), models.build(seed=1, **kind)
    before = {name: t.clone() for name, t in a.state_dict().items()}
    whole = b.state_dict()
    first = next(iter(whole))
    fp8 = models.build(torch.bfloat16, precision="fp8").state_dict()
    other = fp8 if kind.get("precision") is None else models.build(torch.bfloat16).state_dict()
    cases = [
        ({k: v for k, v in whole.items() if k != first}, {}, f"{first}: missing"),
        (whole | {"extra": torch.ones(1)}, {}, "extra: unexpected"),
        (whole | {first: whole[first][:-1]}, {}, rf"{first}: has shape \[60, 64\], expected \[61, 64\]"),
        (whole | {first: 3}, {}, f"{first}: is int, expected a tensor"),
        (whole | {first: whole[first].to("meta")}, {}, f"{first}: is .* on meta, expected .* on cpu"),
        (whole | {first: whole[first].half()}, dict(assign=True), f"{first}: is torch.float16 on cpu, expected"),
        (whole | {first: whole[first].t().contiguous().t()}, dict(assign=True), f"{first}: is .*, not contiguous"),
        (other, dict(strict=False), "q_a_proj.weight: is .*, expected"),
    ]
    if kind.get("precision"):
        lone = {k: v for k, v in whole.items() if not k.endswith("scale")}
        cases.append((lone, dict(strict=False), "q_a_proj.scale belong together, one of them is missing"))
    for state, options, text in cases:
        with pytest.raises(LongcatCheckpointError, match=text):
            a.load_state_dict(state, **options)
        for name, t in a.state_dict().items():
            assert torch.equal(t.view(torch.uint8), before[name].view(torch.uint8)), (name, text)


def test_a_head_of_its_own_is_not_loaded_over_the_targets():
    kind = KINDS["fp32"]
    a, b = models.build(**kind), own_embedding(kind, 1)
    with pytest.raises(LongcatCheckpointError, match=r"mtp.embedding: unexpected"):
        a.load_state_dict(b.state_dict())
    with pytest.raises(LongcatCheckpointError, match=r"mtp.embedding: missing"):
        b.load_state_dict(a.state_dict())


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved, copy.copy])
def test_copies(kind, copied, used):
    a = models.build(**kind)
    if used:
        results(a)
    b = copied(a)
    assert equal(a, b)
    if copied is not copy.copy:  # copy.copy shares the weights
        before = [t.clone() for t in results(a)]
        b.load_state_dict(models.build(seed=1, **kind).state_dict())
        assert all(torch.equal(x, y) for x, y in zip(results(a), before, strict=True))
        assert equal(b, models.build(seed=1, **kind))


CASTS = {
    torch.float16: lambda m: m.half(),
    torch.bfloat16: lambda m: m.bfloat16(),
    torch.float32: lambda m: m.float(),
    torch.float64: lambda m: m.double(),
}


@pytest.mark.parametrize("to", CASTS, ids=str)
def test_casts(kind, to):
    """A cast to the model's own dtype does nothing; any other is refused with a remedy and changes nothing."""
    for cast in (CASTS[to], lambda m: m.to(to), lambda m: m.to("cpu", to), lambda m: m.type(to)):
        model = models.build(**kind)
        if to == kind["dtype"]:
            assert cast(model) is model
        else:
            fix = rf"fix: build it so: from_pretrained\(path, dtype={to}\)"
            with pytest.raises(LongcatUnsupportedError, match=fix):
                cast(model)
        assert equal(model, models.build(**kind))
    layer = models.build(**kind).layers[0]
    if to != kind["dtype"]:
        with pytest.raises(LongcatUnsupportedError, match="dtype"):
            CASTS[to](layer)


def test_moves(kind):
    model = models.build(**kind)
    assert model.to("cpu") is model
    assert equal(model, models.build(**kind))
    if not torch.cuda.is_available():
        with pytest.raises(LongcatUnsupportedError, match="cannot move"):
            model.cuda()
        assert equal(model, models.build(**kind))
    model.to("meta")
    assert model.device.type == "meta"
    model.to_empty(device="cpu")
    model.load_state_dict(models.build(seed=1, **kind).state_dict())
    assert equal(model, models.build(seed=1, **kind))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_around_the_model(kind, dtype):
    model = models.build(**kind)
    wanted, tokens = results(model), generate(model, IDS, 4, temperature=1.0, seed=2).sequences
    with torch.autocast("cpu", dtype=dtype):
        got, same = results(model), generate(model, IDS, 4, temperature=1.0, seed=2).sequences
        inside = models.build(**kind)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(same, tokens, strict=True))
    assert equal(inside, model)
