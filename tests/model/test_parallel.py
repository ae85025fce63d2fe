"""A network whose experts are shared out over ranks: texts and logits of one process, bit for bit; what ranks refuse
together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from longcat_ops.loading.sizing import size_rank
from support import checkpoints, models
from support.comm_pool import Pool
from support.comm_ranks import Keeper, Ranks

TINY = Path(__file__).parents[2] / "checkpoints" / "longcat-tiny"
SLOW = pytest.mark.slow
ODD = dict(n_routed_experts=7, zero_expert_num=4, moe_topk=5, hidden_size=144, expert_ffn_hidden_size=40)


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    found = Keeper()
    yield found
    found.close()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 experts, which nothing divides, of widths that FP8 blocks do not fill."""
    config = models.config(**ODD)
    folder = tmp_path_factory.mktemp("odd")
    checkpoints.write(folder, config, {name: t.bfloat16() for name, t in models.tensors(config).items()})
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_texts_of_the_tiny_checkpoint(keeper: Keeper, ranks: int, precision: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("parallel_jobs.texts", folder=str(TINY), precision=precision, new=16):
        assert wrong == []


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_experts_that_do_not_divide(keeper: Keeper, odd: Path, ranks: int, precision: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("parallel_jobs.texts", folder=str(odd), precision=precision, new=6):
        assert wrong == []


def changed(folder: Path, to: Path, **config: object) -> Path:
    shutil.copytree(folder, to)
    found = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(found | config))
    return to


def test_ranks_that_differ(keeper: Keeper, odd: Path, tmp_path: Path) -> None:
    """All of them say so, and the next model works."""
    other = changed(odd, tmp_path / "config", rms_norm_eps=1e-4)
    more = tmp_path / "names"
    shutil.copytree(odd, more)
    tensors = {name: t if "norm" in name else t.bfloat16() for name, t in models.tensors(models.config(**ODD)).items()}
    checkpoints.write(more, models.config(**ODD), tensors)
    two, folder = Ranks(keeper, 2, "gloo"), str(odd)
    for folders, options, texts in (
        ([folder, str(other)], {}, ["argument `config` is one on ranks [0], one on ranks [1]"] * 2),
        ([folder, str(more)], {"dtype": None}, ["argument `checkpoint` is one on ranks [0], one on ranks [1]"] * 2),
        ([folder, folder], {"precision": ["fp8", "bf16"]}, ["argument `precision` is one on ranks [0]"] * 2),
        ([folder, str(tmp_path / "absent")], {}, ["ranks [1] failed and say why", "absent"]),
        ([folder, folder], {"dtype": "float32"}, ["torch.bfloat16 with ep_group"] * 2),
        ([folder, folder], {"tp_group": "a group"}, ["`tp_group` is 'a group', expected a process group"] * 2),
        ([folder, folder], {"tp_form": ["token", "all_reduce"]}, ["argument `tp_form` is one on ranks [0]"] * 2),
    ):
        for found, text in zip(two.run("parallel_jobs.refused", folders=folders, **options), texts, strict=True):
            assert text in found["text"], found
            assert found["works"] == 4 and found["seconds"] < 10


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=SLOW)])
def test_a_rank_reads_and_holds_its_share(keeper: Keeper, ranks: int) -> None:
    """Of the experts what falls to it, of the rest all; and what `plan` says of the largest rank, to 1 %."""
    alone = size_rank(TINY)
    planned = size_rank(TINY, ep=ranks)
    here = planned.experts_here / planned.experts_total
    for found in Ranks(keeper, ranks, "gloo").run("parallel_jobs.held", folder=str(TINY), precision="fp8"):
        assert found["read"]["experts"] == pytest.approx(alone.parts["experts"].bytes * here, rel=0.01)
        assert found["read"]["dense FFN"] == alone.parts["dense FFN"].bytes
        for name in ("experts", "attention", "dense FFN", "embedding", "lm_head", "norms"):
            assert found["parts"][name] == pytest.approx(planned.parts[name].bytes, rel=0.01), name


def test_a_rank_that_dies_while_it_decodes() -> None:
    with Pool(2) as pool:
        for rank in range(2):
            pool.start(rank, "parallel_jobs.dies", ranks=2, backend="gloo", folder=str(TINY), dying=1)
        found = pool.result(0)
        assert (found["kind"], found["missing"]) == ("LongcatTimeoutError", (1,)), found
        assert "has ended" in found["text"] and found["seconds"] < 5
