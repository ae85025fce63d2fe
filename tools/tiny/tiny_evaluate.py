"""Measures the tiny network on text: loss, agreement of the MTP head, use of zero experts, load of the others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tiny_model import TinyLongcat


def _windows(stream: torch.Tensor, length: int, pad: int) -> torch.Tensor:
    """[n, length + 3] windows that step by `length`; the last one and the look-ahead are padded."""
    count = -(-(len(stream) - 1) // length)
    padded = torch.full((count * length + 3,), pad)
    padded[: len(stream)] = stream
    return padded.unfold(0, length + 3, length)


@torch.no_grad()
def evaluate(
    parameters: dict[str, torch.Tensor],
    config: dict,
    stream: torch.Tensor,
    num_bytes: int,
    length: int = 256,
    max_windows: int | None = None,
) -> dict:
    """Metrics over the windows of `stream`, teacher-forced; every token after the first is predicted once.

    `mtp_agreement` is how often the head's most likely token is the target's own, one and two drafts deep (the head
    run again on its own output); `mtp_accept_t1` is the acceptance of speculative sampling at temperature 1.
    """
    network = TinyLongcat(parameters, config)
    windows = _windows(stream, length, config["pad_token_id"])[:max_windows]
    position = torch.arange(len(windows))[:, None] * length + torch.arange(length)
    sums = dict.fromkeys(("nats", "mtp_nats", "agree1", "agree2", "accept"), 0.0)
    sizes = dict.fromkeys(("nats", "mtp_nats", "agree1", "agree2", "accept"), 0)
    layers = config["num_layers"]
    counts = torch.zeros(layers, config["n_routed_experts"] + config["zero_expert_num"])
    histogram = torch.zeros(layers, config["moe_topk"] + 1, dtype=torch.long)
    batch = max(1, 4096 // length)

    def add(key: str, values: torch.Tensor, valid: torch.Tensor) -> None:
        sums[key] += float((values * valid).sum())
        sizes[key] += int(valid.sum())

    for start in range(0, len(windows), batch):
        ids, where = windows[start : start + batch], position[start : start + batch]
        out = network(ids[:, : length + 1])
        second = network.mtp(
            F.embedding(ids[:, 2 : length + 2], parameters["model.embed_tokens.weight"]), out.mtp_hidden
        )
        target, draft, draft2 = (network.logits(h).float() for h in (out.hidden, out.mtp_hidden, second))
        best = target.argmax(-1)
        loss = F.cross_entropy(target.transpose(1, 2), ids[:, 1 : length + 1], reduction="none")
        mtp_loss = F.cross_entropy(draft.transpose(1, 2), ids[:, 2 : length + 2], reduction="none")
        add("nats", loss, where + 1 < len(stream))
        add("mtp_nats", mtp_loss, where + 2 < len(stream))
        add("agree1", (draft.argmax(-1)[:, :-1] == best[:, 1:]).float(), where[:, :-1] + 2 < len(stream))
        add("agree2", (draft2.argmax(-1)[:, :-2] == best[:, 2:]).float(), where[:, :-2] + 3 < len(stream))
        overlap = torch.minimum(target[:, 1:].softmax(-1), draft[:, :-1].softmax(-1)).sum(-1)
        add("accept", overlap, where[:, :-1] + 2 < len(stream))
        for layer in range(layers):
            chosen = out.chosen[layer][where.flatten() < len(stream)]
            real = (chosen < config["n_routed_experts"]).sum(1)
            histogram[layer] += torch.bincount(real, minlength=histogram.shape[1])
            counts[layer] += torch.bincount(chosen.flatten(), minlength=counts.shape[1])
    mean = {key: sums[key] / sizes[key] for key in sums}
    real_counts = counts[:, : config["n_routed_experts"]]
    real = (histogram * torch.arange(histogram.shape[1])).sum(1) / histogram.sum(1)
    load = real_counts / real_counts.mean(1, keepdim=True)
    result = {
        "window": length,
        "tokens": sizes["nats"],
        "nats_per_token": mean["nats"],
        "mtp_nats_per_token": mean["mtp_nats"],
        "mtp_agreement": [mean["agree1"], mean["agree2"]],
        "mtp_accept_t1": mean["accept"],
        "real_experts_per_token": real.tolist(),
        "zero_expert_share": (1 - real / config["moe_topk"]).tolist(),
        "real_experts_histogram": histogram.tolist(),
        "expert_load_max_over_mean": load.amax(1).tolist(),
        "expert_load_min_over_mean": load.amin(1).tolist(),
    }
    if max_windows is None:
        result["bits_per_byte"] = sums["nats"] / math.log(2) / num_bytes
    return _rounded(result)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
