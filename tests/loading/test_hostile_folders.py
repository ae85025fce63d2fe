"""Broken or malicious checkpoint folders are refused at once, with one message that names the file."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from longcat_ops import LongcatCheckpointError, LongcatFlashConfig, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.cli import main
from longcat_ops.engine.text import load_tokenizer
from longcat_ops.loading.sizing import size_rank
from support import net_oracle
from support.net_oracle import BASE

INDEX = "model.safetensors.index.json"
DEEP = 10_000
SECONDS = 60


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends the process with a traceback if a read blocks, say on a FIFO: it may block in native code."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return net_oracle.write(folder, BASE | {"num_layers": 1}, net_oracle.tensors(BASE | {"num_layers": 1}))


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


def load(folder: Path) -> LongcatFlashForCausalLM:
    return LongcatFlashForCausalLM.from_pretrained(folder, progress=False)


def refused(call: Callable[[], object], *names: object) -> str:
    with pytest.raises(LongcatCheckpointError) as info:
        call()
    assert all(str(name) in str(info.value) for name in names), str(info.value)
    return str(info.value)


def in_place_of(file: Path, kind: str) -> str:
    """Replaces `file` by something that is no regular file; returns what the message must call it."""
    file.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(file.parent)  # the path of a socket has at most 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(file.name)
        finally:
            os.chdir(here)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "loop":
        file.symlink_to(file.name)
        return "Too many levels of symbolic links"
    elif kind == "dangling":
        file.symlink_to("../blobs/0123abcd")
        return "a link to ../blobs/0123abcd, which does not exist"
    return f"is a {kind}, expected a regular file"


KINDS = ("FIFO", "socket", "folder", "device", "loop", "dangling")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "beside.safetensors"])
def test_weights_that_are_no_regular_file(folder, name, kind):
    what = in_place_of(folder / name, kind)
    refused(lambda: load(folder), folder / name, what)
    refused(lambda: size_rank(folder), folder / name, what)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_json_that_is_no_regular_file(folder, name, kind):
    what = in_place_of(folder / name, kind)
    for call in (load, size_rank):
        refused(lambda call=call: call(folder), folder / name, what)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_no_regular_file(folder, tmp_path, kind):
    what = in_place_of(tmp_path / "policy.json", kind)
    policy = tmp_path / "policy.json"
    refused(lambda: LongcatFlashForCausalLM.from_pretrained(folder, precision=policy), policy, what)
    refused(lambda: size_rank(folder, precision=str(policy)), policy, what)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_is_no_regular_file(folder, kind):
    what = in_place_of(folder / "tokenizer.json", kind)
    refused(lambda: load_tokenizer(folder), folder / "tokenizer.json", what)


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_end_in_a_message(folder, kind, capsys):
    what = in_place_of(folder / "config.json", kind)
    for command in ("plan", "generate"):
        assert main([command, str(folder)]) == 2
        streams = capsys.readouterr()
        assert what in streams.err and "config.json" in streams.err and streams.out == ""


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_names_with_a_leading_dot_are_no_weights(folder, kind):
    note = folder / "._model.safetensors"
    if kind is None:
        note.write_bytes(b"\0\5\x16\7" + bytes(4000))
    else:
        in_place_of(note, kind)
    model = load(folder)
    want = net_oracle.forward64(BASE | {"num_layers": 1}, net_oracle.tensors(BASE | {"num_layers": 1}), [3, 4])
    assert torch.allclose(model(torch.tensor([[3, 4]]))[0].double(), torch.from_numpy(want), rtol=0, atol=1e-4)
    assert size_rank(folder).files_total == 1


def test_a_link_that_leads_somewhere_is_followed(folder):
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    (folder / "config.json").rename(folder.parent / "config-blob")
    (folder / "config.json").symlink_to("../config-blob")
    assert load(folder).config.num_layers == 1


BAD_JSON = {
    "nested": b"[" * DEEP + b"]" * DEEP,
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "empty": b"",
    "null bytes": bytes(100),
    "cut": b'{"hidden_size": 6',
    "a list": b"[1, 2]",
    "a number": b"3",
    "too many digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"hidden_size": 64, "hidden_size": 32}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_text_that_is_no_json_object(folder, name, kind):
    (folder / name).write_bytes(BAD_JSON[kind])
    for call in (load, size_rank):
        refused(lambda call=call: call(folder), folder / name)


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_policy_that_is_no_json_object(folder, tmp_path, kind):
    policy = tmp_path / "policy.json"
    policy.write_bytes(BAD_JSON[kind].replace(b"hidden_size", b"*.o_proj"))
    refused(lambda: size_rank(folder, precision=policy), policy)


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_tokenizer_that_is_none(folder, kind):
    (folder / "tokenizer.json").write_bytes(BAD_JSON[kind])
    refused(lambda: load_tokenizer(folder), folder / "tokenizer.json")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_no_json(folder, word):
    file = folder / "config.json"
    text = file.read_text()
    file.write_text(text.replace("{", f'{{"note": {word}, ', 1))
    refused(lambda: load(folder), file, f"holds {word}, which is no JSON value")
    file.write_text(text.replace('"rms_norm_eps": 1e-05', f'"rms_norm_eps": {word}'))
    with pytest.raises(LongcatShapeError, match=r"`rms_norm_eps` is (.|\n)*in .*config.json"):
        load(folder)
    file.write_text(text)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {word}}}')
    refused(lambda: load(folder), folder / "generation_config.json", word)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", INDEX])
def test_files_that_are_too_large_are_not_read(folder, name):
    with (folder / name).open("wb") as file:
        file.truncate(2**38)  # sparse: takes no disk space
    call = (lambda: load_tokenizer(folder)) if name == "tokenizer.json" else (lambda: load(folder))
    refused(call, folder / name, f"has {2**38} bytes, expected at most")


def with_index(folder: Path, file: object) -> None:
    names = net_oracle.shapes(BASE | {"num_layers": 1})
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


@pytest.mark.parametrize(
    "name", ["x" * 252 + ".safetensors", "x" * 5000, "a\0b.safetensors", "model.safetensors/x", "."]
)
def test_names_of_the_index_that_cannot_be_opened(folder, name):
    with_index(folder, name)
    shown = repr(name)[1:-1][:100] if name != "." else str(folder)
    assert len(refused(lambda: load(folder), shown)) < 1500


@pytest.mark.parametrize("name", ["/etc/passwd", "../model/model.safetensors", "a/../../x", 3, None, ["model"], ""])
def test_names_of_the_index_that_lead_elsewhere(folder, name):
    with_index(folder, name)
    for call in (load, size_rank) if name != "" else (load,):
        refused(lambda call=call: call(folder), INDEX if name != "" else folder)


def test_a_path_that_cannot_be_looked_at(tmp_path):
    for path in (tmp_path / ("x" * 300), "a\0b", tmp_path / ("x/" * 3000), tmp_path / "loop"):
        if Path(path).name == "loop":
            path.symlink_to("loop")
        for call in (LongcatFlashConfig.from_pretrained, load, size_rank):
            assert len(refused(lambda call=call, path=path: call(path))) < 1500


@pytest.mark.parametrize(
    "header",
    [
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP,
        b"\xff" * 64,
        b"{}" + b"\0" * 62,
        b'{"__metadata__": 3}',
        b"[]",
        b"null",
    ],
    ids=range(7),
)
def test_headers_that_are_none(folder, header):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lambda: load(folder), file)


def test_a_report_is_not_kept_waiting_by_notes_beside_the_weights(folder):
    from longcat_ops.cli.generate import _target_experts

    in_place_of(folder / "metrics.json", "FIFO")
    assert _target_experts(folder) is None


def test_a_key_that_stands_there_twice(folder):
    """A duplicate among 100,000 keys is found quickly; comparing name by name would exceed the time limit above."""
    pairs = ", ".join(f'"a{i}": "x"' for i in range(10**5)) + ', "a99999": "y"'
    (folder / INDEX).write_text('{"weight_map": {' + pairs + "}}")
    refused(lambda: load(folder), folder / INDEX, "key 'a99999' stands there twice")
