"""The report under the text of `generate`, from the facts that --json prints."""

from __future__ import annotations

from typing import Any, TextIO

_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def lines(facts: dict[str, Any], stream: TextIO, *, coloured: bool = False) -> list[str]:
    """The report, line by line; block characters only if `stream` can encode them. coloured: accepted drafts are."""
    bars = _BLOCKS if can_encode(stream, _BLOCKS) else _ASCII
    return [
        *_checkpoint_lines(facts["checkpoint"]),
        *_run_lines(facts["run"]),
        *_decode_lines(facts["decode"], facts["teacher_forced"], " (green)" if coloured else ""),
        *_expert_lines(facts["experts"], bars),
        *_part_lines(facts["parts"]),
        *_plain_lines(facts["plain"], facts["decode"]),
    ]


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _checkpoint_lines(c: dict[str, Any]) -> list[str]:
    if not c["fp8_projections"]:
        precision = "not quantised"
    elif c["fp8_projections"] == c["projections"]:
        precision = "FP8"
    else:
        precision = f"FP8 in {c['fp8_projections']} of {c['projections']} blocks"
    network = f"{c['layers']} layers, {c['ffn_experts']} FFN + {c['zero_experts']} zero experts, top-{c['top_k']}"
    head = "MTP head" if c["mtp"] else "no MTP head"
    size = f"{precision}, {c['file_bytes'] / 1e6:,.1f} MB, loaded in {c['load_seconds']:.1f} s"
    return [_line("checkpoint", f"{c['path']}: {network}, {head}"), _line("", size)]


def _run_lines(run: dict[str, Any]) -> list[str]:
    by_backend: dict[str, list[str]] = {}
    for op, backend in run["backends"].items():
        by_backend.setdefault(backend, []).append(op)
    if run["temperature"] == 0:
        how = "greedy"
    else:
        how = f"temperature {run['temperature']:g}, top-k {run['top_k']}, top-p {run['top_p']:g}, seed {run['seed']}"
    beta = "" if run["beta"] is None else f", beta {run['beta']:g}"
    draft = f"speculative ({run['draft']} draft{beta})" if run["speculative"] else "plain"
    out = [
        _line(
            "run",
            f"{run['device']}, {run['threads']} thread{'s' * (run['threads'] != 1)}, {run['dtype']}; {how}, {draft}",
        )
    ]
    most = max(by_backend, key=lambda backend: len(by_backend[backend]), default=None)
    for backend, names in sorted(by_backend.items()):
        rest = "all" if len(by_backend) == 1 else "all others"
        out.append(_line("ops", f"{backend}: {rest if backend == most and len(names) > 3 else ', '.join(names)}"))
    if run["row_by_row"]:
        out.append(_line("rows", "one at a time in decode passes: no kernel here keeps them apart in a product"))
    return out


def _decode_lines(d: dict[str, Any], forced: dict[str, Any] | None, colour: str) -> list[str]:
    tokens = f"{d['new_tokens']}: 1 from the prompt's pass, {d['new_tokens'] - 1} from {d['steps']} steps"
    if d["tokens_per_step"]:
        tokens += f" = {d['tokens_per_step']:.2f} tokens/step"
    out = [_line("tokens", tokens)]
    if d["drafted"]:
        text = f"{d['accepted']} of {d['drafted']} drafts{colour} = {d['acceptance']:.2f}"
        if forced and forced["positions"]:
            text += f"; teacher-forced {forced['acceptance']:.2f} ({forced['positions']} positions of {forced['text']})"
        out.append(_line("accepted", text))
    elif forced and forced["positions"]:
        out.append(_line("accepted", f"no drafts; teacher-forced {forced['acceptance']:.2f} of {forced['text']}"))
    prompt = f"prompt: {d['prompt_tokens']} tokens in {1e3 * d['prompt_seconds']:.0f} ms, not counted"
    speed = f"{d['tokens_per_second']:.1f} tokens/s" if d["tokens_per_second"] else "no decode step"
    best = f", best of {d['rounds']}" if d["rounds"] > 1 else ""
    return [*out, _line("speed", f"{speed} ({prompt}{best})")]


def _expert_lines(e: dict[str, Any] | None, bars: str) -> list[str]:
    if e is None:
        return []
    target = f", trained for {e['target']:g}" if e["target"] else ""
    layers = " ".join(f"{mean:.2f}" for mean in e["by_layer"][:8]) + (" ..." if len(e["by_layer"]) > 8 else "")
    text = f"FFN experts per token: mean {e['mean']:.2f} of {e['top_k']}{target}, min {e['min']}, max {e['max']}"
    total, top = sum(e["histogram"]), max(e["histogram"])
    # Any count shows: only 0 is drawn as nothing.
    chart = "".join(bars[-(-n * (len(bars) - 1) // top)] for n in e["histogram"])
    percent = " ".join(f"{100 * n / total:.0f}" for n in e["histogram"])
    return [
        _line("experts", f"{text}, zero share {e['zero_share']:.2f}"),
        _line("", f"by layer {layers}; 0..{e['top_k']}: |{chart}| {percent} %"),
    ]


def _part_lines(parts: dict[str, Any] | None) -> list[str]:
    if not parts:
        return []
    spent = [f"{name} {p['share']:.0%} {p['ms_per_token']:.2f}" for name, p in parts.items()]
    return [_line("time", f"ms/token: {', '.join(spent)}")]


def _plain_lines(plain: dict[str, Any] | None, decode: dict[str, Any]) -> list[str]:
    if plain is None:
        return []
    speed = ""
    if plain["tokens_per_second"]:
        speed = f"{plain['tokens_per_second']:.1f} tokens/s, speculative is {plain['speedup']:.2f}x; "
    verdict = f"yes ({decode['new_tokens']} tokens)" if plain["identical"] else "NO"
    return [_line("plain", f"{speed}identical: {verdict}")]


def can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
