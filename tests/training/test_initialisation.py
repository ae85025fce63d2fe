"""init_longcat_: which tensors get what, and that variances are aligned as the report says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import init_longcat_, transfer_hyperparameters, variance_alignment
from tiny_model import TINY_CONFIG, parameter_shapes

GROUPS = [
    {"kind": "embedding", "init_var": 0.04},
    {"kind": "hidden", "init_var": 0.0025, "lr": 1e-3},
    {"kind": "output", "init_var": 0.01},
    {"kind": "hidden", "init_var": 0.0025, "weight_decay": 0.1},
]
STD = {"embed_tokens": 0.2, "lm_head": 0.1}


def empty(**sizes: int) -> dict[str, Tensor]:
    """The tensors of a network, filled with NaN."""
    return {name: torch.full(shape, math.nan) for name, shape in parameter_shapes(TINY_CONFIG | sizes).items()}


def initialised(seed: int = 0, tensors: dict[str, Tensor] | None = None, **options: object) -> dict[str, Tensor]:
    return init_longcat_(tensors or empty(), GROUPS, generator=torch.Generator().manual_seed(seed), **options)


def test_every_tensor_gets_its_distribution() -> None:
    for name, value in initialised().items():
        if value.ndim == 1:
            assert (value == (0 if name.endswith("e_score_correction_bias") else 1)).all(), name
            continue
        std = next((s for part, s in STD.items() if part in name), 0.05)
        n = value.numel()
        # 6 sampling deviations of a mean, and of a standard deviation, of n normal numbers
        assert abs(value.double().mean().item()) < 6 * std / n**0.5, name
        assert value.double().std().item() == pytest.approx(std, rel=6 / (2 * n) ** 0.5), name


def test_the_seed_decides_all_bits() -> None:
    first, again, other = initialised(1), initialised(1), initialised(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)
    half = {name: tensor.bfloat16() for name, tensor in empty().items()}
    assert all(torch.equal(t, first[n].bfloat16()) for n, t in initialised(1, half).items())


def test_a_module_and_its_router_biases() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {key: TINY_CONFIG[key] for key in ("n_routed_experts", "zero_expert_num", "moe_topk")}
    config = transformers.LongcatFlashConfig(
        vocab_size=50, hidden_size=32, ffn_hidden_size=48, expert_ffn_hidden_size=16, num_layers=1, kv_lora_rank=8,
        num_attention_heads=2, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, **sizes,
    )  # fmt: skip
    model = transformers.LongcatFlashForCausalLM(config)
    angles = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    bias = model.model.layers[0].mlp.router.e_score_correction_bias
    bias.fill_(3.0)
    assert init_longcat_(model, GROUPS) is model and not bias.any()
    assert model.model.layers[0].mlp.experts.gate_up_proj.std().item() == pytest.approx(0.05, rel=0.05)
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(buffer, angles[name]) for name, buffer in model.named_buffers() if name in angles)


def rms_norm(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt()


@pytest.mark.parametrize("alignment", ["forward", "weights"])
def test_queries_and_both_parts_of_keys_have_one_variance(alignment: str) -> None:
    """That of hidden_size * init_var, whatever the ranks (equation 7); without the factors it is that of the ranks."""
    hidden, q_rank, kv_rank, rope, nope, value = 1024, 96, 32, 32, 64, 64
    sizes = dict(hidden_size=hidden, q_lora_rank=q_rank, kv_lora_rank=kv_rank, num_layers=1, vocab_size=4,
                 expert_ffn_hidden_size=8, ffn_hidden_size=8, n_routed_experts=2, zero_expert_num=0)  # fmt: skip
    w = initialised(0, empty(**sizes), alignment=alignment)
    w = {n.split("self_attn.0.")[1]: t.double() for n, t in w.items() if "self_attn.0." in n}
    x = rms_norm(torch.randn(200, hidden, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    a_q, a_kv, _ = variance_alignment(hidden, q_rank, kv_rank) if alignment == "forward" else (1.0, 1.0, 1.0)
    q = rms_norm(x @ w["q_a_proj.weight"].T) * a_q @ w["q_b_proj.weight"].T
    kv_a = x @ w["kv_a_proj_with_mqa.weight"].T
    kv = rms_norm(kv_a[:, :kv_rank]) * a_kv @ w["kv_b_proj.weight"].T
    q, kv = q.unflatten(1, (-1, nope + rope)), kv.unflatten(1, (-1, nope + value))
    parts = {"query": q[..., :nope], "rotary query": q[..., nope:], "key": kv[..., :nope],
             "value": kv[..., nope:], "rotary key": kv_a[:, kv_rank:]}  # fmt: skip
    for name, part in parts.items():
        assert part.var().item() == pytest.approx(hidden * 0.0025, rel=0.12), name
    assert (kv / a_kv).var().item() < 0.1 * hidden * 0.0025 or alignment == "weights"


def moe_variance(segments: int, gain: float, scale: float, seed: int) -> float:
    """Of the output of 8 experts of width 64, top 2, each cut into so many; scale: gain of their down_proj."""
    hidden, experts, width, top_k = 64, 8 * segments, 64 // segments, 2 * segments
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, std = draw(200, hidden), 0.05
    gates = (x @ (0.2 * std * draw(hidden, experts))).softmax(-1)
    weights, ids = gates.topk(top_k)
    gate, up, down = (
        std * draw(experts, width, hidden),
        std * draw(experts, width, hidden),
        std * draw(experts, hidden, width),
    )
    inner = F.silu(torch.einsum("th,ewh->tew", x, gate)) * torch.einsum("th,ewh->tew", x, up)
    y = torch.einsum("tew,ehw->teh", inner, scale * down)
    return (gain * (weights[..., None] * y.gather(1, ids[..., None].expand(-1, -1, hidden))).sum(1)).var().item()


def test_gamma_undoes_what_cutting_experts_does() -> None:
    """The variance falls by m^2, and comes back by gamma = m (equation 8), in the network or in down_proj."""
    seeds, m = range(6), 4
    whole = sum(moe_variance(1, 1.0, 1.0, seed) for seed in seeds)
    cut = sum(moe_variance(m, 1.0, 1.0, seed) for seed in seeds)
    gamma = variance_alignment(64, 64, 64, m).experts
    aligned = [sum(moe_variance(m, *gains, seed) for seed in seeds) for gains in ((gamma, 1.0), (1.0, gamma))]
    assert whole / cut == pytest.approx(m**2, rel=0.1)
    assert aligned == pytest.approx([whole, whole], rel=0.1)


def test_factors_in_the_weights_are_those_of_the_network() -> None:
    plain, scaled = initialised(3), initialised(3, alignment="weights", segments=5)
    a_q, a_kv, gamma = variance_alignment(256, 128, 128, 5)
    for name, value in plain.items():
        factor = a_q if "q_b_proj" in name else a_kv if "kv_b_proj" in name else 1.0
        factor = gamma if "experts.down_proj" in name else factor
        torch.testing.assert_close(scaled[name], factor * value, rtol=2.0**-22, atol=0)
        assert factor != 1 or torch.equal(scaled[name], value)


def test_factors_of_longcat_flash() -> None:
    assert variance_alignment(6144, 1536, 512, 6) == pytest.approx((2.0, 12**0.5, 6.0), rel=1e-15)


def test_experts_one_by_one_and_groups_of_a_transfer() -> None:
    name = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    tensors = {name.format(e, part): torch.empty(40, 50) for e in (0, 1) for part in ("gate", "up", "down")}
    groups = transfer_hyperparameters(GROUPS, 4)
    init_longcat_(tensors, groups, alignment="weights", segments=3, generator=torch.Generator().manual_seed(0))
    for key, value in tensors.items():
        std = 0.025 * (3 if "down" in key else 1)
        assert value.std().item() == pytest.approx(std, rel=6 / (2 * 2000) ** 0.5), key


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"model": {"model.layers.0.other.weight": torch.ones(2, 2)}}, "model"),
        ({"model": nn.Linear(2, 2)}, "model"),
        ({"model": [torch.ones(2)]}, "model"),
        ({"model": {"lm_head.weight": None}}, "model"),
        ({"groups": GROUPS[:2]}, "groups"),
        ({"groups": [*GROUPS, {"kind": "hidden", "init_var": 0.1}]}, r"groups\[4\]\['init_var'\]"),
        ({"groups": [{"kind": "hidden"}]}, r"groups\[0\]\['init_var'\]"),
        ({"groups": [{"kind": "norm", "init_var": 1.0}]}, r"groups\[0\]\['kind'\]"),
        ({"alignment": "both"}, "alignment"),
        ({"segments": 0}, "segments"),
    ],
)
def test_bad_arguments_write_nothing(change: dict, argument: str) -> None:
    weight = torch.full((2, 2), 7.0)
    good = {"model": {"lm_head.weight": weight}, "groups": GROUPS}
    if isinstance(change.get("model"), dict):
        change = {"model": {"lm_head.weight": weight, **change["model"]}}
    with pytest.raises(LongcatShapeError, match=f"init_longcat_: argument `{argument}`"):
        init_longcat_(**{**good, **change})
    assert (weight == 7).all()


def test_a_latent_without_its_projection_is_refused() -> None:
    weight = torch.full((2, 2), 7.0)
    with pytest.raises(LongcatShapeError, match="expected one with q_a_proj, too"):
        init_longcat_({"self_attn.q_b_proj.weight": weight}, GROUPS, alignment="weights")
    with pytest.raises(LongcatShapeError, match="variance_alignment: argument `kv_lora_rank`"):
        variance_alignment(8, 4, 0)
    assert (weight == 7).all()
