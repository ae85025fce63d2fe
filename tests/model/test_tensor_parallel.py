"""A network whose dense weights are shared out over ranks, in both forms: texts and logits of one process within
bounds; sums in fp32, rounded once; what a rank reads and holds; groups and tokens that do not fit are refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM, generate
from longcat_ops.loading.sizing import size_rank
from longcat_ops.model.shares import Part, Shares
from longcat_ops.model.source import StateDictSource
from support import checkpoints, models, tensor_jobs
from support.comm_pool import Pool
from support.comm_ranks import Keeper, Ranks
from support.parallel_jobs import prompts

TINY = Path(__file__).parents[2] / "checkpoints" / "longcat-tiny"
SLOW = pytest.mark.slow
FORMS = ("token", "all_reduce")
# Of 2 ranks, neither 7 experts nor 2.5 blocks of the FFN, nor the blocks of q_b and o_proj, nor 61 ids make two halves.
ODD = dict(
    n_routed_experts=7, zero_expert_num=4, moe_topk=5, hidden_size=144, expert_ffn_hidden_size=40, ffn_hidden_size=320,
    num_attention_heads=6, qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=56, q_lora_rank=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    found = Keeper()
    yield found
    found.close()


def written(folder: Path, **changes: int) -> Path:
    config = models.config(**changes)
    tensors = models.tensors(config, seed=3, mtp_embedding=True)
    return checkpoints.write(folder, config, {name: t.bfloat16() for name, t in tensors.items()})


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("odd"), **ODD)


@lru_cache
def bound(folder: Path, precision: str, cut: bool) -> float:
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision)
    texts = generate(model, prompts(model.config.vocab_size), 8, eos_token_id=-1).sequences
    return tensor_jobs.moved(model, texts, cut)


CASES = [
    pytest.param(ranks, form, precision, marks=[] if (ranks, precision) == (2, "fp8") else [SLOW])
    for ranks in (2, 4)
    for form in FORMS
    for precision in ("fp8", "bf16")
]


@pytest.mark.parametrize(("ranks", "form", "precision"), CASES)
def test_texts_of_the_tiny_checkpoint(keeper: Keeper, ranks: int, form: str, precision: str) -> None:
    most = bound(TINY, precision, False)
    options = dict(folder=str(TINY), precision=precision, tp=2, form=form, new=16, bound=most)
    for wrong in Ranks(keeper, ranks, "gloo").run("tensor_jobs.network", **options):
        assert wrong == []


# In token form nothing but the FFN's width is cut, and that between blocks.
CUT = [pytest.param(*case.values, marks=[SLOW] if case.values[1] == "token" else case.marks) for case in CASES]


@pytest.mark.parametrize(("ranks", "form", "precision"), CUT)
def test_parts_that_cut_blocks(keeper: Keeper, odd: Path, ranks: int, form: str, precision: str) -> None:
    most = bound(odd, precision, form == "all_reduce")
    options = dict(folder=str(odd), precision=precision, tp=2, form=form, new=6, bound=most)
    for wrong in Ranks(keeper, ranks, "gloo").run("tensor_jobs.network", **options):
        assert wrong == []


@pytest.mark.parametrize("form", [None, *FORMS], ids=str)
def test_ranks_with_more_and_less_to_do(keeper: Keeper, form: str | None) -> None:
    for wrong in Ranks(keeper, 2, "gloo").run("tensor_jobs.uneven", folder=str(TINY), form=form):
        assert wrong == []


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_a_device_records(keeper: Keeper, form: str) -> None:
    """Nothing of it reads a value on the host."""
    for found in Ranks(keeper, 2, "gloo").run("tensor_jobs.recorded", folder=str(TINY), form=form):
        sums = [op for op in found["ops"] if op.startswith(("comm_all_reduce", "comm_reduce_scatter"))]
        # Of 2 layers and the MTP head: FFNs, and in all-reduce form attentions; and two embeddings.
        assert found["same"] and len(sums) == (5 + 2 if form == "token" else 10 + 2), found


def test_other_arguments_on_one_rank(keeper: Keeper) -> None:
    for found in Ranks(keeper, 2, "gloo").run("tensor_jobs.other_arguments", folder=str(TINY)):
        for form in FORMS:
            for name in ("max_new_tokens", "temperature", "top_p", "seed", "speculative", "nothing"):
                text = found[f"{form} {name}"]["text"]
                if form == "token" and name in ("max_new_tokens", "temperature", "top_p", "seed"):
                    assert text == "", (name, text)  # each rank has requests of its own
                else:
                    assert "argument `arguments` is" in text, (form, name, text)
            most = 512 if form == "token" else 1024
            assert f"`pass` is 1200 rows on rank {int(form == 'token')}, expected at most {most}" in (
                found[f"{form} rows"]["text"])  # fmt: skip
            assert "`copy` is of a model of several ranks" in found[f"{form} copy"]["text"]
            assert found[f"{form} works"]["kind"] == "none"


@pytest.mark.parametrize("precision", ["fp8", pytest.param("bf16", marks=SLOW)])
@pytest.mark.parametrize("form", FORMS)
def test_sums_are_rounded_once(keeper: Keeper, form: str, precision: str) -> None:
    for wrong in Ranks(keeper, 2, "gloo").run("tensor_jobs.sums", folder=str(TINY), precision=precision, form=form):
        assert wrong == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=SLOW)])
def test_a_rank_reads_and_holds_its_share(keeper: Keeper, ranks: int, form: str) -> None:
    """What `plan` says of the largest rank, to 1 %; of FFNs, vocabulary and experts no byte of another rank's part."""
    alone, planned = size_rank(TINY), size_rank(TINY, ep=ranks, tp=2, tp_form=form)
    found = Ranks(keeper, ranks, "gloo").run("parallel_jobs.held", folder=str(TINY), precision="fp8", tp=2, form=form)
    largest = max(found, key=lambda one: sum(one["parts"].values()))["parts"]
    for name, part in planned.parts.items():
        held = part.bytes if name != "router" else part.bytes * 2 // 5  # on a CPU without the terms for a GPU
        assert largest[name] == pytest.approx(held, rel=0.01), name
    for one in found:
        read, whole = one["read"], {name: part.bytes for name, part in alone.parts.items()}
        assert read["experts"] * ranks == whole["experts"]
        for name in ("dense FFN", "lm_head", "embedding"):
            assert read[name] * 2 == whole[name], name
        c = LongcatFlashConfig.from_pretrained(TINY)
        latent = (c.q_lora_rank + c.latent_width) * c.hidden_size
        heads = c.num_attention_heads * (c.qk_head_dim * c.q_lora_rank + c.v_head_dim * c.hidden_size)
        kv_b = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank
        here = latent + (heads + kv_b if form == "token" else (heads + kv_b) // 2)
        cut = 0 if form == "token" else 64 * c.q_lora_rank  # of q_b the second rank reads 2 blocks
        scales = 0.001 * here
        assert 0 <= read["attention"] / (2 * c.num_layers) - here <= cut + scales


def test_shares() -> None:
    def lengths(size: int, ranks: int, what: str) -> list[int]:
        parts = [getattr(Shares(r, ranks, "all_reduce"), what)(size) for r in range(ranks)]
        assert parts[0].start == 0 and parts[-1].stop == size
        assert all(a.stop == b.start for a, b in pairwise(parts))
        return [part.stop - part.start for part in parts]

    assert lengths(12288, 4, "width") == [3072] * 4
    assert lengths(320, 2, "width") == [256, 64]
    assert lengths(300, 3, "width") == [128, 128, 44]
    assert lengths(64, 8, "heads") == [8] * 8
    assert lengths(7, 3, "rows") == [3, 2, 2]
    assert lengths(1, 4, "rows") == [1, 0, 0, 0]
    assert [s.stop for s in Shares(0, 3).vocabulary(61)] == [24, 48, 61]


@pytest.mark.parametrize("stored", ["fp8", "bf16"])
@pytest.mark.parametrize(("rows", "cols"), [((0, 96), (0, 200)), ((96, 192), (0, 200)), ((0, 304), (72, 144))])
def test_a_part_has_the_blocks_of_the_whole(stored: str, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """Its FP8 codes and scales are those of the whole, from the begin of its first block on; so are dense values."""
    weight = torch.randn(304, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 304)[:, None]
    tensors = {"w": weight.bfloat16()}
    if stored == "fp8":
        tensors = checkpoints.to_fp8(tensors, lambda name: True)
    part = Part(slice(*rows), slice(*cols))
    for precision in ("fp8", "bf16"):
        source = StateDictSource(tensors, torch.bfloat16, precision=precision)
        whole, held = source.linear("w", 304, 200), source.linear("w", 304, 200, part=part)
        if precision == "bf16":
            assert torch.equal(held, whole[slice(*rows), slice(*cols)]) and held.is_contiguous()
            continue
        top, left = rows[0] // 128, cols[0] // 128
        codes, scales = (t.float() for t in held)
        assert torch.equal(codes, whole[0].float()[128 * top : rows[1], 128 * left : cols[1]])
        assert torch.equal(scales, whole[1][top : -(-rows[1] // 128), left : -(-cols[1] // 128)])


def test_groups_that_do_not_fit(keeper: Keeper, tmp_path: Path) -> None:
    two, three = Ranks(keeper, 2, "gloo"), written(tmp_path / "three", num_attention_heads=3, ffn_hidden_size=256)
    inside = "expected some of the ranks of ep_group, which holds every rank of the model"
    sizes = "with an ep_group of ranks [0, 1] whose tp_groups have [2, 1] ranks"
    for case, folder, texts in (
        (
            "no ep_group",
            TINY,
            [f"`tp_group` is of ranks [0, 1], without an ep_group, {inside}"] * 2,
        ),
        ("not inside", TINY, [f"of ranks [0, 1], with an ep_group of ranks [{r}], {inside}" for r in (0, 1)]),
        ("another on one rank", TINY, [f"`tp_group` is of ranks {one}, {sizes}" for one in ([0, 1], [1])]),
        ("forms", TINY, ["argument `tp_form` is one on ranks [0], one on ranks [1]"] * 2),
        ("heads", three, ["`tp_group` is 2 ranks, expected a divisor of the 3 attention heads"] * 2),
    ):
        for found, text in zip(two.run("tensor_jobs.refused", folder=str(folder), case=case), texts, strict=True):
            assert text in found["text"], found
            assert found["works"] == 4 and found["seconds"] < 10


def test_ranks_that_have_other_worlds_in_mind() -> None:
    with Pool(3, subgroups=True) as pool:
        first, second = pool.run(2, "tensor_jobs.other_worlds", ranks=2, backend="gloo", folder=str(TINY))
    said = "`ep_group` is of ranks [0, 1], and of ranks {} on rank 1, which did not come"
    assert said.format("[0, 1, 2]") in first["another"]["text"], first
    assert "`ep_group` is of ranks [0, 1, 2], and of ranks [0, 1] on rank 0" in second["another"]["text"], second
    assert (first["its own"]["kind"], second["its own"]["kind"]) == ("LongcatTimeoutError", "none"), (first, second)
    assert "rank 1 last made a model of ranks [1]" in first["its own"]["text"]
    for found in (first, second):
        assert found["another"]["seconds"] < 5, found


def test_a_part_that_no_op_takes_as_fp8(keeper: Keeper, tmp_path: Path) -> None:
    """Two heads of 12 outputs are 24 rows, which FP8 products take; one is 12, which they do not. No weight is read."""
    sizes = dict(num_attention_heads=2, qk_nope_head_dim=8, qk_rope_head_dim=4, ffn_hidden_size=256)
    folder = written(tmp_path / "heads", **sizes)
    found = Ranks(keeper, 2, "gloo").run("tensor_jobs.refused", folder=str(folder), case="fp8 heads")
    assert any("FP8 for model.layers.0.self_attn.0.q_b_proj.weight [12, 32]" in one["text"] for one in found), found


def test_an_ffn_with_fewer_blocks_than_ranks(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="`tp_group` is 2 ranks, expected at most 1, the blocks of 128 in a dense FFN"):
        LongcatFlashForCausalLM.random(models.config(ffn_hidden_size=96), torch.bfloat16, tp=Shares(0, 2))


def test_other_tokens_on_one_rank(keeper: Keeper) -> None:
    for found in Ranks(keeper, 2, "gloo").run("tensor_jobs.other_tokens", folder=str(TINY)):
        for name in ("generate", "forward"):
            assert "`input_ids` is other values on ranks [0, 1], one tp_group" in found[name]["text"], found
        assert "`pass` is kind and rows [(1, 2), (1, 3)] on ranks [0, 1]" in found["prefill"]["text"], found
        assert found["works"]["kind"] == "none"


def test_a_rank_that_dies_between_sums() -> None:
    with Pool(2, subgroups=True) as pool:
        for rank in range(2):
            pool.start(rank, "parallel_jobs.dies", ranks=2, backend="gloo", folder=str(TINY), dying=1, tp=2)
        found = pool.result(0)
        assert (found["kind"], found["missing"]) == ("LongcatTimeoutError", (1,)), found
        assert "has ended" in found["text"] and found["seconds"] < 5
