"""`generate` stops at any stop id of config.json or generation_config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.cli import main
from support.cli_checkpoint import checkpoint, one_thread

pytestmark = pytest.mark.long


def until(new: list[int], *stops: int) -> list[int]:
    """The tokens up to and including the first one in `stops`."""
    return new[: next((i + 1 for i, token in enumerate(new) if token in stops), len(new))]


def with_ids(source: Path, folder: Path, config: object, generation: object) -> Path:
    """A copy of the checkpoint with these stop ids; `...` leaves out config.json's key or the whole generation file."""
    shutil.copytree(source, folder)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("eos_token_id")
    (folder / "config.json").write_text(json.dumps(raw | ({} if config is ... else {"eos_token_id": config})))
    if generation is not ...:
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": generation}))
    return folder


CASES = [  # (config.json, generation_config.json), as positions in the plain text; every one stops
    ([9, 20], ...), (20, [9, 20]), (None, 9), (None, [20, 9]), ([20], 9), ([9], [20]), (20, None), (9, ...),
]  # fmt: skip


@pytest.mark.parametrize(("config", "generation"), CASES)
def test_both_files_count(checkpoint, tmp_path, capsys, config, generation):
    def ids(places: object) -> object:
        one = isinstance(places, int)
        return new[places] if one else [new[i] for i in places] if isinstance(places, list) else places

    prompt = "and it came"
    arguments = ["--prompt", prompt, "--max-new-tokens", "40", "--no-report"]
    assert main(["generate", str(checkpoint), *arguments, "--json"]) == 0
    new = json.loads(capsys.readouterr().out)["ids"]
    folder = with_ids(checkpoint, tmp_path / "model", ids(config), ids(generation))
    stops = [i for value in (ids(config), ids(generation)) if value not in (None, ...)
             for i in (value if isinstance(value, list) else [value])]  # fmt: skip
    want = until(new, *stops)
    assert 0 < len(want) < 40
    assert main(["generate", str(folder), *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == want
    loaded = LongcatFlashForCausalLM.from_pretrained(folder, progress=False)
    assert loaded.config.stop_ids == set(stops)


@pytest.mark.parametrize("value", [[], "2", -1, 288, [2, "3"], 2.5, True, {}])
def test_a_bad_id_of_either_file_is_refused(checkpoint, tmp_path, capsys, value):
    for place, name, values in (("a", "config.json", (value, ...)), ("b", "generation_config.json", (None, value))):
        folder = with_ids(checkpoint, tmp_path / place, *values)
        assert main(["generate", str(folder), "--max-new-tokens", "2"]) == 2
        text = capsys.readouterr().err
        assert "eos_token_id" in text and str(folder / name) in text and "expected an id in 0 .. 287" in text
