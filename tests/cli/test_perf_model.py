"""`perf-model` prints what `perf.deployment` says: parts, the report's tables, sweeps, plots, solutions; refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longcat_ops.cli import main
from longcat_ops.perf.deployment import GPUS, NETWORKS, Deployment, evaluate
from longcat_ops.perf.deployment.reported import achieved

D = Deployment(NETWORKS["LongCat-Flash"], GPUS["H800"])
QWEN_LIKE = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["perf-model", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["perf-model", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def read(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    return json.loads(printed(capsys, *arguments, "--json"))


def test_one_deployment(capsys: pytest.CaptureFixture) -> None:
    text, found = printed(capsys), evaluate(D)
    assert text.startswith(
        "LongCat-Flash, 560.7 B parameters, 27.1 B active: modelled, not measured\nH800, EP 128, 96 "
    )
    for name, value in (("dispatch", "236"), ("combine", "472"), ("MoE", "58.6"), ("attention", "230")):
        assert re.search(rf"^  {name} +{value}  ", text, flags=re.M), name
    assert f"ms a token               {found.tpot_ms:.1f}" in text and "combine 47%, link RDMA" in text
    facts = read(capsys)
    assert facts["result"]["tpot_ms"] == found.tpot_ms and facts["result"]["dollars"] == found.dollars
    assert facts["deployment"]["overlap"] == "sbo" and facts["deployment"]["ffn_experts"] == 8
    given = read(capsys, "--attention-us", "264")["result"]
    assert given["parts_us"]["attention"] == pytest.approx(264) and given["tpot_ms"] == pytest.approx(16.03, abs=0.005)
    assert "dense FFN" not in printed(capsys, "deepseek-v3")
    assert "note: the network has no MTP head" in printed(capsys, "Qwen3-235B-A22B", "--tp", "4")


def test_every_argument_reaches_the_model(capsys: pytest.CaptureFixture) -> None:
    arguments = {
        "gpu": "H200", "ep": 8, "batch": 40, "drafts": 2, "acceptance": 0.7, "context": 900, "overlap": "tbo",
        "precision": "bf16", "attention_precision": "fp8", "ffn_experts": 9.5, "tp": 2,
    }  # fmt: skip
    line = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    values = arguments | {"gpu": GPUS["H200"]}
    expected = evaluate(Deployment(NETWORKS["LongCat-Flash"], zero_aware=False, **values))
    found = read(capsys, *line, "--no-zero-aware")["result"]
    assert found["tpot_ms"] == expected.tpot_ms and found["cache_bytes"] == expected.cache
    assert found["parts_us"]["dispatch"] == expected.parts.dispatch.us
    halved = read(capsys, "--link-gb-s", "20")["result"]["parts_us"]
    assert halved["combine"] == pytest.approx(2 * evaluate(D).parts.combine.us)
    measured = read(capsys, "--link", "DeepEP")["result"]["parts_us"]
    assert measured["combine"] == pytest.approx(369 * 192 * 6144 / (128 * 7168))  # 8 rows a token in both
    assert read(capsys, "--price", "3")["result"]["dollars"] == pytest.approx(1.5 * evaluate(D).dollars)
    assert read(capsys, "--efficiency", "achieved")["result"]["tpot_ms"] > 1.5 * evaluate(D).tpot_ms


def test_the_reports_tables(capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, "--report")
    for words in ("dispatch, us 275 / 275.3 157 / 157.3 236 / 235.9", "MoE, us 77 / 76.9 29 / 29.3 60 / 58.6",
                  "combine, us 551 / 550.5 315 / 314.6 472 / 471.9", "ms a token 30 / 30.13 26.2 / 26.17 16 / 16.03",
                  "$ a million tokens 0.17 / 0.1736 0.15 / 0.1516 0.09 / 0.0926",
                  "table 7, a limit 96 5,000 fp8 16.0 62.5 0.093", "table 6, measured 8 5,000 bf16 9.95 101 0.691",
                  f"step = {achieved().slowdown:.3f} x modelled"):  # fmt: skip
        assert words in " ".join(text.split())
    facts = read(capsys, "--report")["report"]
    assert [column["network"] for column in facts["table_7"]] == ["DeepSeek-V3", "Qwen3-235B-A22B", "LongCat-Flash"]
    assert len(facts["table_6"]) == 5


def test_worth(capsys: pytest.CaptureFixture) -> None:
    lines = printed(capsys, "--worth", "--attention-us", "264").splitlines()
    rows = {line[2:37].strip(): line for line in lines if "link" in line or "core" in line}
    assert "1,384" in rows["zero experts travel"] and "+34%" in rows["zero experts travel"]
    facts = read(capsys, "--worth")["worth"]
    assert facts[0]["name"] == "as it is" and facts[0]["tpot_ms"] == evaluate(D).tpot_ms
    assert "reason" in read(capsys, "--worth", "--batch", "1")["worth"][4]


def test_sweep_and_plot(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the extra [bench]")
    file = tmp_path / "sweep.svg"
    arguments = ("--sweep", "batch=16..128", "--sweep", "ep=7,64,128", "--plot", str(file))
    text = printed(capsys, *arguments)
    assert len(re.findall(r"^  +\d+ +\d+  ", text, flags=re.M)) == 12 and "`ep` is 7" in text
    drawn = file.read_text()
    assert "ep 64" in drawn and "ep 7<" not in drawn and "ms a token" in drawn
    printed(capsys, *arguments)
    assert file.read_text() == drawn
    facts = read(capsys, "--sweep", "gpu=H20,H200", "--price", "H20=1")["sweep"]
    assert [point["gpu"] for point in facts] == ["H20", "H200"] and all(point["dollars"] for point in facts)
    text = refused(capsys, *arguments[:-1], str(tmp_path / "sweep.xyz"))
    assert "not supported" in text


def test_solve(capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, "--solve", "tokens/s/user >= 100", "--gpu", "H800")
    assert text.startswith("LongCat-Flash, tokens/s/user >= 100: 256 x H800, 61 sequences a GPU, ")
    assert "what keeps a larger batch away: tokens/s/user >= 100" in text and "combine 47%, link RDMA" in text
    facts = read(capsys, "--solve", "tpot <= 20", "--ep", "64")["solve"]
    assert facts["best"] in facts["by_gpu"] and {r["deployment"]["ep"] for r in facts["by_gpu"].values()} == {64}
    text = refused(capsys, "--solve", "tokens/s/user >= 5000")
    assert "H800: at best tokens/s/user" in text and "H20: no price known" in text


def test_a_config_of_ones_own(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN_LIKE))
    text = printed(capsys, str(file))
    assert f"{file}, 30.5 B parameters, 3.0 B active" in text  # Qwen3-30B-A3B; 3.3 B active with the embedding
    assert printed(capsys, str(tmp_path)) == text
    file.write_text(json.dumps(QWEN_LIKE | {"num_experts": 160}))
    assert read(capsys, str(file))["deployment"]["ep"] == 80
    assert read(capsys, str(file), "--link", "NVLink")["deployment"]["ep"] == 8
    file.write_text(json.dumps({"hidden_size": 8}))
    assert "missing: num_layers or num_hidden_layers; num_attention_heads; " in refused(capsys, str(file))
    file.write_text("[")
    assert "is not valid JSON" in refused(capsys, str(file))
    assert "expected LongCat-Flash, DeepSeek-V3, Qwen3-235B-A22B, a config.json or its folder" in refused(capsys, "gpt")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("--ep", "3"), "`ep` is 3, expected one of 1, 2, 4"), (("--plot", "x.svg"), "`plot` is 'x.svg', expected a"),
     (("--price", "V100=1"), "`price` is 'V100=1'"), (("--price", "free"), "`price` is 'free'"),
     (("--link-gb-s", "0"), "`link_gb_s` is 0.0"), (("--link", "RDMA", "--link-gb-s", "40"), "without --link"),
     (("--efficiency", "nosuch"), "`efficiency` is 'nosuch', expected report, kind, unkind, achieved"),
     (("--efficiency", "README.md"), "expected answers of a GPU with times"), (("--attention-us", "nan"), "is nan"),
     (("--sweep", "batch=1", "--sweep", "batch=2"), "two different axes"), (("--solve", "fast"), '"tpot <= X"')],
)  # fmt: skip
def test_refusals(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: tuple, text: str) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert text in refused(capsys, *arguments)


def test_measured_shares_of_a_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    answer = {"bytes": 4.8e9, "flops": 1, "times": {"longcat_ops": {"us": 2000}}}
    lines = [{"step": "facts", "status": "passed", "answer": {"device": "NVIDIA H200"}},
             {"step": "times/gate_up-G4-m8", "status": "passed", "answer": answer}]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": "cut')
    text = printed(capsys, "--efficiency", str(tmp_path))
    assert "efficiency measured: NVIDIA H200, " in text and "memory of 1, products not measured" in text


def test_it_needs_no_torch() -> None:
    code = ("import sys; sys.modules['torch'] = None; from longcat_ops.cli import main;"
            "sys.exit(main(['perf-model', '--solve', 'tpot <= 30']))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "sequences a GPU" in done.stdout, done.stderr
