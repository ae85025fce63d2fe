"""Enabling restores what it replaces in transformers, affects nothing else, and names every misuse."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LongcatFlashForCausalLM, modeling_utils
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.longcat_flash import modeling_longcat_flash as modeling

from longcat_ops import LongcatShapeError, LongcatUnsupportedError
from longcat_ops.integrations import transformers as adapter
from longcat_ops.integrations.transformers import disable, enable, enabled
from support import hf
from support.hf_published import write

FIT = adapter.fit()
pytestmark = [
    pytest.mark.skipif(not FIT.fits, reason=f"transformers {FIT.version}: {FIT.reason}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
NAME = "longcat_ops"


def state():
    """Everything that enabling may replace, by identity."""
    from transformers.integrations.moe import ExpertsInterface
    from transformers.monkey_patching import get_patch_mapping

    owners = (modeling, modeling_utils, PreTrainedConfig, modeling.LongcatFlashPreTrainedModel)
    owners += (modeling.LongcatFlashMoE, modeling.LongcatFlashForCausalLM)
    found = {(owner.__name__, name): id(value) for owner in owners for name, value in vars(owner).items()}
    return found | {("experts", name): 0 for name in ExpertsInterface._global_mapping} | get_patch_mapping()


@pytest.fixture(autouse=True)
def restored(tmp_path):
    """Checks that no test leaves a change behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        hf.build(num_layers=1)  # transformers caches on first use
        before = state()
        yield
        disable()
        assert state() == before


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "published")


def is_enabled():
    return modeling.LongcatFlashMoE.__module__.startswith("longcat_ops")


def from_published(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **{"experts_implementation": NAME} | options)


def test_blocks_nest():
    assert not is_enabled()
    with enabled():
        inside = state()
        with enabled(), enabled(default=True):
            assert is_enabled()
        assert state() == inside
        enable()
        enable()
    assert is_enabled()
    with enabled():
        disable()
        disable()
        assert is_enabled()
    assert not is_enabled()


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_restores(error, folder):
    with pytest.raises(error), enabled(), enabled(default=True):
        raise error
    assert not is_enabled()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"no tensors")
    with pytest.raises(Exception, match=r"(?i)header|safetensors"), enabled():
        from_published(folder)
    assert not is_enabled()


def test_failing_half_way_restores(monkeypatch):
    monkeypatch.delattr(modeling_utils, "get_model_conversion_mapping")
    before = state()
    with pytest.raises(LongcatUnsupportedError, match=r"without what is replaced in it .*get_model_conversion_mapping"):
        enable()
    assert state() == before


def test_threads(folder):
    """Threads load a published checkpoint while others build stock models; the last one to leave restores."""
    ids, out, meet = torch.randint(3, 61, (1, 7)), {}, threading.Barrier(4)

    def published(i):
        for _ in range(3):
            meet.wait(60)
            with enabled():
                model = from_published(folder)
            out.setdefault(i, []).append(model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0))

    def stock(i):
        for _ in range(3):
            meet.wait(60)
            model, _ = hf.build(num_layers=1)
            out.setdefault(i, []).append(type(model.model.layers[0].mlp.experts).__module__)

    jobs = [threading.Thread(target=job, args=(i,)) for i, job in enumerate((published, stock, published, stock))]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [len(out[i]) for i in range(4)] == [3] * 4
    assert all(torch.equal(tokens, out[0][0]) for tokens in out[0] + out[2])
    assert set(out[1] + out[3]) == {modeling.__name__}


def test_a_model_lives_on_outside(folder):
    with enabled():
        model = from_published(folder)
    ids = torch.randint(3, 61, (1, 7))
    want = model(ids, use_cache=False).logits  # no torch.no_grad: parameters are frozen
    assert not want.requires_grad and not any(p.requires_grad for p in model.parameters())
    packed = io.BytesIO()
    torch.save(model, packed)
    packed.seek(0)
    for again in (copy.deepcopy(model), torch.load(packed, weights_only=False)):
        assert type(again.model.layers[0].mlp) is type(model.model.layers[0].mlp)
        assert torch.equal(again(ids, use_cache=False).logits, want)


def test_models_that_do_not_ask_stay_as_they_are(folder):
    config = hf.build()[0].config
    config._experts_implementation = None
    with enabled():
        assert AutoConfig.from_pretrained(folder).model_type == "longcat_flash"
        for named in ("eager", None):
            other = copy.deepcopy(config)
            other._experts_implementation = named
            model = LongcatFlashForCausalLM(other)
            assert type(model.model.layers[0].mlp) is modeling.LongcatFlashMoE.__mro__[1]
            assert model.config._experts_implementation == "eager"
        asking = copy.deepcopy(config)
        asking._experts_implementation = NAME
        assert is_ours(LongcatFlashForCausalLM(asking))
    with enabled(default=True):
        assert is_ours(LongcatFlashForCausalLM(copy.deepcopy(config)))
        assert is_ours(AutoModelForCausalLM.from_pretrained(folder))
        other = copy.deepcopy(config)
        other._experts_implementation = "eager"
        assert not is_ours(LongcatFlashForCausalLM(other))


def is_ours(model):
    return type(model.model.layers[0].mlp).__module__.startswith("longcat_ops")


def test_names_that_nobody_knows(folder, tmp_path):
    with enabled(), pytest.raises(ValueError, match=r'"longcat".* is not supported.*only possible.*"longcat_ops"'):
        from_published(folder, experts_implementation="longcat")
    typed = write(tmp_path / "typed", model_type="longcat_flash", routed_scaling_factor=6.0)
    with pytest.raises(
        ValueError, match=r'"longcat_ops".* is not supported. The only possible arguments are .*"eager"'
    ):
        from_published(typed)
    with pytest.raises(LongcatShapeError, match="`default` is 'yes', expected True or False"):
        enable(default="yes")
    with pytest.raises(LongcatShapeError, match="`default` is 1, expected"), enabled(default=1):
        pass


def test_another_kind_of_model_is_refused():
    small = dict(
        vocab_size=50, hidden_size=32, intermediate_size=16, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with enabled():
        config = transformers.Qwen3MoeConfig(**small)
        model = AutoModelForCausalLM.from_config(config, experts_implementation=NAME)
        with pytest.raises(
            LongcatUnsupportedError, match="'longcat_ops' for Qwen3MoeExperts, expected a LongCat-Flash"
        ):
            model(torch.ones(1, 3, dtype=torch.long))


def test_the_layout_is_chosen_when_a_model_is_built(folder):
    stock, _ = hf.build()
    with enabled():
        model = from_published(folder)
        for one, asked in ((model, "eager"), (stock, NAME)):
            with pytest.raises(LongcatUnsupportedError, match=f"`experts_implementation` is '{asked}', expected '"):
                one.set_experts_implementation(asked)
        model.set_experts_implementation(NAME)
        stock.set_experts_implementation("eager")


def test_training_is_refused(folder):
    with enabled():
        model = from_published(folder)
    model.requires_grad_(True)
    with pytest.raises(LongcatUnsupportedError, match="requires a gradient, expected one that does not"):
        model(torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("version", ["5.22.1", "5.25.0", "4.57.1"])
def test_other_versions(version, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", version)
    found = adapter.fit()
    assert found[:2] == (version, False) and "5.23 or 5.24" in found.reason and "pip install" in found.fix
    with pytest.raises(LongcatUnsupportedError, match=rf"is version {version}, expected version 5.23 or 5.24"):
        enable()


def test_importing_it_loads_no_framework():
    code = "import sys, longcat_ops.integrations.transformers as t; t.fit(); t.disable; import longcat_ops as l\n"
    code += "assert l.integrations.transformers is t; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
