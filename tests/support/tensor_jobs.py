"""Jobs of ranks that share dense weights, beside one process that has all of them."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import longcat_ops
from longcat_ops import LongcatFlashForCausalLM, _environment
from longcat_ops.engine.observer import Unobserved
from longcat_ops.engine.step import DecodeStep, Sampling
from longcat_ops.engine.step_graph import _NoHostReads, _Recorder
from longcat_ops.model.layers import Linear
from longcat_ops.model.passes import Kind
from longcat_ops.model.products import Quantised
from longcat_ops.model.stages import AnyOrder, serial, threads
from longcat_ops.model.tensor_parallel import Partial, whole
from longcat_ops.ops.quant import dequant_fp8
from longcat_ops.testing.op_results import bits
from support.comm_faults import attempt
from support.comm_pool import World
from support.parallel_jobs import decoded, groups, prompts
from support.tensor_oracle import in_parts

ULP = 2.0**-7  # of bfloat16, at most, as a share of the value
HALF = 2.0**-4  # of a step of e4m3


def is_summed(name: str) -> bool:
    """Whether ranks sum the output of a projection, or compute it by another product than one process."""
    return ".mlps." in name or name.endswith(".o_proj")


def moved(model: LongcatFlashForCausalLM, texts: list[Tensor], cut: bool, seeds: int = 4) -> float:
    """How far logits of these texts move when each output of the projections that ranks sum moves by an ulp, up or
    down at random. Ranks sum in fp32 and round once, so their sums are such outputs, of which few move.

    cut: the heads of a rank end within an FP8 block, so inputs of `o_proj` are quantised with other neighbours: each
    moves by half a step of e4m3, too.
    """
    draw = torch.Generator().manual_seed(0)

    def shaken(y: Tensor, step: float) -> Tensor:
        up = torch.randint(0, 2, y.shape, generator=draw).to(y.device) * 2 - 1
        return (y.float() * (1 + up * step)).to(y.dtype)

    right = [model(ids[None]) for ids in texts]
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Linear) and is_summed(name):
            hooks.append(module.register_forward_hook(lambda module, inputs, y: shaken(y, ULP)))
            if cut and module.fp8 and name.endswith(".o_proj"):
                hooks.append(module.register_forward_pre_hook(lambda m, inputs: (shaken(inputs[0], HALF), *inputs[1:])))
    try:
        found = [float((model(ids[None]) - want).abs().max()) for _ in range(seeds)
                 for ids, want in zip(texts, right, strict=True)]  # fmt: skip
    finally:
        for one in hooks:
            one.remove()
    return max(found)


def network(world: World, ranks: int, backend: str, folder: str, precision: str, tp: int, form: str,
            new: int, bound: float) -> list[str]:  # fmt: skip
    """Texts, drafts and logits beside one process that adds the same parts, bit for bit, and beside one that has whole
    weights, within `bound`; every executor beside the serial one, bit for bit."""
    alone, oracle = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision), in_parts(
        folder, precision, tp, form)  # fmt: skip
    same = tp if form == "all_reduce" else 1
    own = prompts(alone.config.vocab_size)[world.rank // same :: ranks // same]
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, **groups(world, ranks, tp, form))
    wrong = []
    try:
        for options in ({}, {"speculative": False}, {"temperature": 0.9, "seed": 3}):
            whole, right, got = (longcat_ops.generate(m, own, new, eos_token_id=-1, graph=False, **options)
                                 for m in (alone, oracle, model))  # fmt: skip
            wrong += [f"text {options}"] * (bits(got.sequences) != bits(right.sequences))
            wrong += [f"drafts {options}"] * (got.accepted != right.accepted)
            wrong += [f"experts {options}"] * (bits(got.num_real) != bits(right.num_real))
            if "seed" not in options:
                wrong += [f"text {options} {why}" for a, b in zip(whole.sequences, got.sequences, strict=True)
                          if (why := parted(alone, a, b, bound))]  # fmt: skip
        found = decoded(model, own).logits
        off = float((found - decoded(alone, own).logits).abs().max())
        wrong += [f"logits are off by {off}, expected at most {bound}"] * (not off <= bound)
        wrong += ["logits"] * (bits(found) != bits(decoded(oracle, own).logits))
        wrong += ["drafts' logits"] * (bits(drafted(model, own)) != bits(drafted(oracle, own)))
        wrong += everywhere(world, found, "logits", ranks if same > 1 and ranks == tp else 0)
        for execute in (threads, AnyOrder(3), serial):
            model.execute = execute
            wrong += [f"executor {execute}"] * (bits(decoded(model, own).logits) != bits(found))
        drawn = longcat_ops.generate(model, own[:1], new, temperature=1.0, eos_token_id=-1).sequences[0]
        wrong += everywhere(world, drawn, "texts without a seed", ranks if same > 1 and ranks == tp else 0)
    finally:
        model.parallel.close()
    return wrong


def drafted(model: LongcatFlashForCausalLM, own: list[Tensor]) -> list[Tensor]:
    """Logits of the MTP head over each prompt but its first token."""
    found = []
    with torch.inference_mode():
        for ids in own:
            cache = model.new_cache(1, 64)
            step = model.prefill(cache, 0, ids)
            hidden = model.draft_prefill(cache, 0, ids.roll(-1), step.hidden)
            found.append(model.head(hidden))
        if model.parallel is not None:
            model.parallel.rest()
    return found


def uneven(world: World, ranks: int, backend: str, folder: str, form: str | None) -> list[str]:
    """Ranks with other numbers of prompts, one of them of two chunks, and one without any."""
    tp, wrong = (2, form) if form else (1, "token"), []
    model = LongcatFlashForCausalLM.from_pretrained(folder, **groups(world, ranks, *tp))
    oracle = in_parts(folder, None, *tp) if form else LongcatFlashForCausalLM.from_pretrained(folder)
    long = torch.randint(3, oracle.config.vocab_size, (600,), generator=torch.Generator().manual_seed(0))
    try:
        for lists in ([[long, long[:3], long[:9]], [long[:2]]], [[], [long[:5], long[:1]]], [[long[:70]], []]):
            own = lists[0] if form == "all_reduce" else lists[world.rank]
            right = longcat_ops.generate(oracle, own, 5, eos_token_id=-1, graph=False) if own else None
            got = longcat_ops.generate(model, own, 5, eos_token_id=-1)
            same = got.sequences == [] if right is None else bits(got.sequences) == bits(right.sequences)
            wrong += [f"{[len(ids) for ids in own]}"] * (not same)
    finally:
        model.parallel.close()
    return wrong


def recorded(world: World, ranks: int, backend: str, folder: str, form: str) -> dict[str, Any]:
    """Ops of a step as a GPU that records by itself sees them: every exchange, and no read by the host."""
    model = LongcatFlashForCausalLM.from_pretrained(folder, **groups(world, ranks, 2, form))
    try:
        with torch.inference_mode():
            cache = model.new_cache(3, 64)
            step = DecodeStep(model, cache, Sampling(0.0, 0, 1.0, False), [1, 2, 3], [40] * 3, [], speculative=True,
                              around=Unobserved().around)  # fmt: skip
            for b in range(3):
                cache.reserve(b, 40)
            step.num_drafts.zero_()
            step.inputs.fill_(5)
            eager = step().tokens.clone()
            cache.lengths.zero_()
            step.num_drafts.zero_()
            step.inputs.fill_(5)
            recorder = _Recorder(lambda op, _: True, records="cpu")
            with _NoHostReads(), recorder:
                made = step()
        return {"ops": [op for op, _ in recorder.calls], "same": torch.equal(made.tokens, eager)}
    finally:
        model.parallel.close()


def other_arguments(world: World, ranks: int, backend: str, folder: str) -> dict[str, Any]:
    """What generate says where ranks give other arguments, in both forms; and more rows than a pass may have."""
    found: dict[str, Any] = {}
    for form in ("token", "all_reduce"):
        model = LongcatFlashForCausalLM.from_pretrained(folder, **groups(world, ranks, 2, form))

        def tried(many: int = 1, model: LongcatFlashForCausalLM = model, **options: Any) -> dict[str, Any]:
            given = {"max_new_tokens": 3, "temperature": 0.7, "seed": 1, "eos_token_id": -1} | options
            return attempt(lambda: longcat_ops.generate(model, [torch.tensor([5, 6])] * many, **given))

        for name, values in {"max_new_tokens": (4, 2), "temperature": (0.0, 1.0), "top_p": (0.1, 1.0), "seed": (3, 4),
                             "speculative": (True, False)}.items():  # fmt: skip
            found[f"{form} {name}"] = tried(**{name: values[world.rank]})
        found[f"{form} nothing"] = tried(max_new_tokens=2 * world.rank)
        found[f"{form} rows"] = tried(600 if world.rank or form == "all_reduce" else 1)
        found[f"{form} copy"] = attempt(partial(copy.deepcopy, model))
        found[f"{form} works"] = tried()
        model.parallel.close()
    return found


def parted(alone: LongcatFlashForCausalLM, right: Tensor, got: Tensor, bound: float) -> str:
    """Why two texts must not differ as they do: they may where the best two logits are closer than they can move."""
    if torch.equal(right, got):
        return ""
    at = int((right != got).nonzero()[0])
    best = alone(right[None, :at])[0, -1].topk(2).values
    margin = float(best[0] - best[1])
    return "" if margin < 2 * bound else f"parts at {at}, where the margin is {margin}"


def everywhere(world: World, found: Tensor, what: str, ranks: int) -> list[str]:
    """A complaint unless the first `ranks` ranks found the same."""
    if not ranks:
        return []
    everyones: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everyones, bits(found), group=world.group(ranks))
    return [f"{what} differ among ranks"] * (len(set(map(str, everyones))) > 1)


def sums(world: World, ranks: int, backend: str, folder: str, precision: str, form: str) -> list[str]:
    """Each output that ranks sum, of the same inputs, against the same sum in fp64: rounded once from fp32 terms."""
    alone = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision)
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, **groups(world, ranks, 2, form))
    wrong: list[str] = []
    try:
        with torch.inference_mode():
            cache, other = model.new_cache(3, 8), alone.new_cache(3, 8)
            for c in (cache, other):
                for b in range(3):
                    c.reserve(b, 1)
            draw = torch.Generator().manual_seed(1 if form == "all_reduce" else world.rank)
            x = torch.randn(3, alone.config.hidden_size, generator=draw).bfloat16()
            for i, (mine, layer) in enumerate(zip(model.layers, alone.layers, strict=True)):
                rows, right = model.rows(cache, [0, 1, 2], [0, 0, 0]), alone.rows(other, [0, 1, 2], [0, 0, 0])
                model.parallel.meet(Kind.TARGET, rows)
                for a, b, last in ((mine.mlps[0], layer.mlps[0], "down_proj"),
                                   (mine.self_attn[0], layer.self_attn[0], "o_proj")):  # fmt: skip
                    bound = exact(b, last, x, right)
                    y = whole(a(x, rows))
                    wrong += [f"layer {i} {last}"] * (y.dtype != torch.bfloat16 or not near(y, *bound))
                    wrong += [f"{last} is summed twice"] * isinstance(y, Partial)
    finally:
        model.parallel.close()
    return wrong


def exact(block: nn.Module, last: str, x: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
    """(the sum that ends a block, and of its terms' magnitudes), in fp64, of the inputs that one process has there."""
    seen: list[Any] = []
    layer = getattr(block, last)
    hook = layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    block(x, rows)
    hook.remove()
    weight = layer.weight.double() if not layer.fp8 else dequant_fp8(layer.weight, layer.scale, torch.float32).double()
    if layer.fp8:
        pair = seen[0].pair if isinstance(seen[0], Quantised) else longcat_ops.per_token_group_quant_fp8(seen[0])
        inputs = pair[0].double() * pair[1].double().repeat_interleave(128, 1)[:, : pair[0].shape[1]]
    else:
        inputs = seen[0].double()
    return inputs @ weight.T, inputs.abs() @ weight.abs().T


def near(y: Tensor, exact: Tensor, magnitude: Tensor) -> bool:
    """Within one rounding to bf16, half an ulp, of a sum whose fp32 order is free; 600 terms at most."""
    error = 600 * 2.0**-24 * magnitude
    return bool(((y.double() - exact).abs() <= error + (exact.abs() + error) * ULP / 2).all())


def refused(world: World, ranks: int, backend: str, folder: str, case: str) -> dict[str, Any]:
    """What a constructor says of groups that do not fit; and whether the next model works."""
    everyone, pair = world.group(ranks), world.pair()
    one = torch.distributed.new_group([world.rank], use_local_synchronization=True)
    options: dict[str, Any] = {
        "no ep_group": dict(tp_group=pair),
        "not inside": dict(ep_group=one, tp_group=pair),
        "another on one rank": dict(ep_group=everyone, tp_group=pair if world.rank == 0 else None),
        "forms": dict(ep_group=everyone, tp_group=pair, tp_form=("token", "all_reduce")[world.rank]),
        "heads": dict(ep_group=everyone, tp_group=pair, tp_form="all_reduce"),
        "fp8 heads": dict(ep_group=everyone, tp_group=pair, tp_form="all_reduce", precision="fp8"),
    }[case]
    found = attempt(lambda: LongcatFlashForCausalLM.from_pretrained(folder, **options))
    right = LongcatFlashForCausalLM.from_pretrained(folder, ep_group=everyone, tp_group=pair)
    found["works"] = len(longcat_ops.generate(right, [torch.tensor([5, 6])], 2).sequences[0])
    right.parallel.close()
    return found


def other_worlds(world: World, ranks: int, backend: str, folder: str) -> dict[str, Any]:
    """Rank 0 has a model of two ranks in mind, rank 1 one of three; or one of its own, which it gets."""
    two, three = world.group(2), world.group(3)
    alone = torch.distributed.new_group([world.rank], use_local_synchronization=True)
    found = {}
    limit, _environment.timeout_s = _environment.timeout_s, lambda: 1.0
    try:
        for case, group in (("another", three), ("its own", alone)):
            group = two if world.rank == 0 else group
            found[case] = attempt(lambda group=group: LongcatFlashForCausalLM.from_pretrained(folder, ep_group=group))
            torch.distributed.barrier(two)
    finally:
        _environment.timeout_s = limit
    return found


def other_tokens(world: World, ranks: int, backend: str, folder: str) -> dict[str, Any]:
    """Ranks of one tp_group that have other tokens where they should have the same: prompts, rows of a pass."""
    model = LongcatFlashForCausalLM.from_pretrained(folder, **groups(world, ranks, 2, "all_reduce"))
    prompt = torch.tensor([5, 6, 7 + world.rank])
    found = {
        "generate": attempt(lambda: longcat_ops.generate(model, [prompt], 2)),
        "forward": attempt(lambda: model(prompt[None])),
        "prefill": attempt(lambda: model.prefill(model.new_cache(1, 8), 0, prompt[: 2 + world.rank])),
        "works": attempt(lambda: longcat_ops.generate(model, [prompt[:2]], 2)),
    }
    model.parallel.close()
    return found
