"""Bad calls under DeepGEMM's names raise the right exception, with a text in DeepGEMM's words, and write nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import longcat_ops.compat.deep_gemm as deep_gemm
from longcat_ops import LongcatError, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.testing.op_results import bits
from support.grouped import SENTINEL, activations, weights

M, N, K, GROUPS = 6, 72, 256, 2
DENSE, CONTIGUOUS, MASKED = "fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked"
PRODUCTS = (DENSE, CONTIGUOUS, MASKED)
Arguments = dict[str, Any]


def arguments(product: str) -> Arguments:
    ((a, sa),), (b, sb) = activations((M,), K), weights(GROUPS, N, K)[0]
    if product == DENSE:
        return {"a": (a, sa), "b": (b[0], sb[0]), "d": full(M, N)}
    if product == CONTIGUOUS:
        layout = torch.tensor([0, 0, -1, 1, 1, -1], dtype=torch.int32)
        return {"a": (a, sa), "b": (b, sb), "d": full(M, N), "grouped_layout": layout}
    lhs = a.view(GROUPS, M // 2, K), sa.view(GROUPS, M // 2, -1)
    masked_m = torch.tensor([1, 2], dtype=torch.int32)
    return {"a": lhs, "b": (b, sb), "d": full(GROUPS, M // 2, N), "masked_m": masked_m, "expected_m": 2}


def full(*shape: int) -> Tensor:
    return torch.full(shape, SENTINEL, dtype=torch.bfloat16)


def psum() -> Arguments:
    return arguments(CONTIGUOUS) | {"grouped_layout": ends([2, 5]), "use_psum_layout": True}


def ends(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def refused(product: str, given: Arguments, error: type[LongcatError]) -> str:
    """The text of the refusal, after checking that d is unchanged."""
    d = given["d"]
    before = bits(d.detach()) if type(d) is Tensor and d.layout is torch.strided else None
    with pytest.raises(error) as caught:
        getattr(deep_gemm, product)(**given)
    assert type(caught.value) is error and caught.value.__cause__ is None
    assert before is None or bits(d.detach()) == before
    return str(caught.value)


KEYWORDS: list[tuple[str, Any, type[LongcatError], str]] = [
    ("recipe", (1, 1, 128), LongcatUnsupportedError, "`recipe` is (1, 1, 128), expected None or (1, 128, 128)."),
    ("recipe", [1, 1, 128], LongcatUnsupportedError, "`recipe` is (1, 1, 128), expected None or (1, 128, 128)."),
    (
        "recipe",
        (1, 1, 32),
        LongcatUnsupportedError,
        "`recipe` is (1, 1, 32), expected None or (1, 128, 128) (on SM90).",
    ),
    ("recipe_a", (1, 32), LongcatUnsupportedError, "`recipe_a` is (1, 32), expected None or (1, 128) (on SM90)."),
    ("recipe_b", (1, 128), LongcatUnsupportedError, "`recipe_b` is (1, 128), expected None or (128, 128) (on SM90)."),
    ("compiled_dims", "nx", LongcatShapeError, "`compiled_dims` is 'nx', expected a str of the letters m, n and k."),
    ("compiled_dims", None, LongcatShapeError, "`compiled_dims` is None, expected a str of the letters m, n and k."),
    ("disable_ue8m0_cast", 1, LongcatShapeError, "`disable_ue8m0_cast` is 1, expected True or False."),
]
LAYOUT_KEYWORDS = [
    ("use_psum_layout", None, LongcatShapeError, "`use_psum_layout` is None, expected True or False."),
    ("ensure_zero_padding", 0, LongcatShapeError, "`ensure_zero_padding` is 0, expected True or False."),
    (
        "expected_m_for_psum_layout",
        64,
        LongcatShapeError,
        "`expected_m_for_psum_layout` is 64, expected None without use_psum_layout.",
    ),
]
ACCEPTED = {
    "recipe": [None, (1, 128, 128), [1, 128, 128]],
    "recipe_a": [None, (1, 128)],
    "recipe_b": [None, [128, 128]],
    "compiled_dims": ["", "nk", "kn", "mnk"],
    "disable_ue8m0_cast": [True, False],
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("name", "value", "error", "text"), KEYWORDS)
def test_keywords(product: str, name: str, value: Any, error: type[LongcatError], text: str) -> None:
    assert refused(product, arguments(product) | {name: value}, error).startswith(f"{product}: argument {text}")


@pytest.mark.parametrize(("name", "value", "error", "text"), LAYOUT_KEYWORDS)
def test_keywords_of_the_contiguous_layout(name: str, value: Any, error: type[LongcatError], text: str) -> None:
    assert refused(CONTIGUOUS, arguments(CONTIGUOUS) | {name: value}, error) == f"{CONTIGUOUS}: argument {text}"


@pytest.mark.parametrize("product", PRODUCTS)
def test_keywords_change_nothing_at_the_values_of_sm90(product: str) -> None:
    plain = arguments(product)
    getattr(deep_gemm, product)(**plain)
    for name, values in ACCEPTED.items():
        for value in values:
            given = arguments(product) | {name: value}
            assert getattr(deep_gemm, product)(**given) is None
            assert bits(given["d"]) == bits(plain["d"])


def test_c() -> None:
    for c, got in ((torch.zeros(M, N), "a Tensor"), (0, "0"), (False, "False")):
        text = refused(DENSE, arguments(DENSE) | {"c": c}, LongcatUnsupportedError)
        expected = "None: no product adds to a tensor.\n  fix: write to a new d, then c.add_(d)"
        assert text == f"{DENSE}: argument `c` is {got}, expected {expected}"
    given = arguments(DENSE)
    text = refused(DENSE, given | {"c": given["d"], "recipe": (1, 1, 128)}, LongcatUnsupportedError)
    assert text.startswith(f"{DENSE}: argument `recipe` is (1, 1, 128)") and "weight gradients" in text


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["a", "b"])
def test_operands(product: str, name: str) -> None:
    given = arguments(product)
    values, scales = given[name]
    for value, got in ((None, "None"), (values, "a Tensor"), ((values, scales, scales), "a tuple of 3")):
        text = refused(product, given | {name: value}, LongcatShapeError)
        assert text == f"{product}: argument `{name}` is {got}, expected a pair (e4m3 values, float32 scales)."
    for packed in (values.view(torch.int8), values.view(torch.uint8), values.view(torch.float4_e2m1fn_x2)):
        text = refused(product, given | {name: (packed, scales)}, LongcatUnsupportedError)
        assert text.startswith(
            f"{product}: argument `{name}` is packed FP4 ({packed.dtype}), expected torch.float8_e4m3fn"
        )
    text = refused(product, given | {name: (values.float(), scales)}, LongcatShapeError)
    assert text.startswith(f"{product}: argument `{name}` is torch.float32, expected torch.float8_e4m3fn.")
    text = refused(product, given | {name: (values, scales.int())}, LongcatShapeError)
    assert text.startswith(f"{product}: argument `{name}[1]` is torch.int32, expected torch.float32.")
    text = refused(product, given | {name: (values, scales[..., :1])}, LongcatShapeError)
    assert text.startswith(f"{product}: argument `{name}[1]` is of shape {list(scales[..., :1].shape)}, expected ")


@pytest.mark.parametrize("product", [*PRODUCTS, "psum"])
def test_output(product: str) -> None:
    given, product = (psum(), CONTIGUOUS) if product == "psum" else (arguments(product), product)
    shape = list(given["d"].shape)
    start = f"{product}: argument `d` is "
    assert refused(product, given | {"d": None}, LongcatShapeError) == f"{start}None, expected a torch.Tensor."
    for d, text in (
        (given["d"][..., :-8], f"of shape {[*shape[:-1], N - 8]}, expected {shape}."),
        (given["d"].double(), "torch.float64, expected torch.bfloat16, torch.float16 or torch.float32."),
        (given["d"].to_sparse(), "of layout torch.sparse_coo, expected a dense torch.Tensor."),
        (given["a"][0].view(torch.bfloat16)[..., :N], "in memory shared with `a`, expected memory of its own."),
    ):
        assert refused(product, given | {"d": d}, LongcatShapeError).startswith(start + text)
    text = refused(product, given | {"d": given["d"].requires_grad_()}, LongcatUnsupportedError)
    assert text.startswith(f"{start}a tensor that requires a gradient") and "fix: d.detach()" in text


@pytest.mark.parametrize("use_psum_layout", [False, True])
def test_grouped_layout(use_psum_layout: bool) -> None:
    given = psum() if use_psum_layout else arguments(CONTIGUOUS)
    start, size = f"{CONTIGUOUS}: argument `grouped_layout` is ", GROUPS if use_psum_layout else M
    layout = given["grouped_layout"]
    for value, text in (
        (None, "None, expected a torch.Tensor."),
        ([1, 2], "of type list, expected a torch.Tensor."),
        (layout.long(), "torch.int64, expected torch.int32."),
        (layout[:1], f"of shape [1], expected [{size}]"),
        (layout.repeat_interleave(2)[::2], "of strides (2), expected contiguous."),
        (layout.to_sparse(), "of layout torch.sparse_coo, expected a dense torch.Tensor."),
    ):
        assert refused(CONTIGUOUS, given | {"grouped_layout": value}, LongcatShapeError).startswith(start + text)


def test_psum() -> None:
    start = f"{CONTIGUOUS}: argument "
    for value, text in ((0, "0"), (2.5, "2.5"), (True, "True")):
        given = psum() | {"expected_m_for_psum_layout": value}
        expected = f"{start}`expected_m_for_psum_layout` is {text}, expected an int of 1 or more."
        assert refused(CONTIGUOUS, given, LongcatShapeError) == expected
    text = refused(CONTIGUOUS, psum() | {"b": weights(1, N, K)[0]}, LongcatShapeError)
    assert text == f"{start}`grouped_layout` is of shape [2], expected [1], one end per group of `b`."
    (b, sb), _ = weights(1, N, K)
    text = refused(CONTIGUOUS, psum() | {"b": (b[0], sb[0])}, LongcatShapeError)
    assert text.startswith(f"{start}`b` is 2-D [{N}, {K}], expected 3-D [G, N, K].")
    text = refused(CONTIGUOUS, psum() | {"grouped_layout": ends([2, 5]).to("meta")}, LongcatShapeError)
    assert text.startswith(f"{start}`grouped_layout` is on meta, expected ")


def test_masked() -> None:
    start = f"{MASKED}: argument "
    for name, value, text in (
        ("masked_m", None, "`masked_m` is None, expected a torch.Tensor."),
        ("masked_m", ends([1]), "`masked_m` is of shape [1], expected [2]."),
        ("masked_m", ends([1, 2], torch.int64), "`masked_m` is torch.int64, expected torch.int32."),
        ("expected_m", -1, "`expected_m` is -1, expected 0 or more rows."),
        ("expected_m", 2.0, "`expected_m` is of type float, expected of type int."),
    ):
        assert refused(MASKED, arguments(MASKED) | {name: value}, LongcatShapeError).startswith(start + text)


@pytest.mark.parametrize("product", PRODUCTS)
def test_calls_that_do_not_fit_the_signature(product: str) -> None:
    for keywords in ({"alpha": 1}, {"out": None}):
        with pytest.raises(TypeError, match="got an unexpected keyword argument"):
            getattr(deep_gemm, product)(**arguments(product), **keywords)
    with pytest.raises(TypeError, match="missing"):
        getattr(deep_gemm, product)(arguments(product)["a"])


X = torch.zeros(4, 128)
CASTS = [
    ("per_token_cast_to_fp8", (X, True), {}, LongcatUnsupportedError, "`use_ue8m0` is True, expected False"),
    (
        "per_token_cast_to_fp8",
        (X, False, 128, True),
        {},
        LongcatUnsupportedError,
        "`use_packed_ue8m0` is True, expected False",
    ),
    ("per_token_cast_to_fp8", (X, None), {}, LongcatShapeError, "`use_ue8m0` is None, expected True or False."),
    (
        "per_token_cast_to_fp8",
        (X, False, 9),
        {},
        LongcatShapeError,
        "`gran_k` is 9, expected a positive multiple of 8.",
    ),
    (
        "per_token_cast_to_fp8",
        (X[:, :9], False),
        {},
        LongcatShapeError,
        "`x` is of shape [4, 9], expected [T, H] with H a positive multiple of 8.",
    ),
    ("per_token_cast_to_fp8", (None, False), {}, LongcatShapeError, "`x` is None, expected a torch.Tensor."),
    ("per_block_cast_to_fp8", (X, True), {}, LongcatUnsupportedError, "`use_ue8m0` is True, expected False"),
    ("per_block_cast_to_fp8", (X, False), {"gran_k": 32}, LongcatUnsupportedError, "`gran_k` is 32, expected 128"),
    ("per_block_cast_to_fp8", (X.double(), False), {}, LongcatShapeError, "`x` is torch.float64, expected"),
    ("get_tma_aligned_size", (5, 3), {}, LongcatShapeError, "`element_size` is 3, expected 1, 2, 4, 8 or 16 bytes."),
    ("get_tma_aligned_size", (-1, 4), {}, LongcatShapeError, "`mn` is -1, expected an int of 0 or more."),
    ("get_mn_major_tma_aligned_tensor", (None,), {}, LongcatShapeError, "`sf` is None, expected a torch.Tensor."),
    ("get_mn_major_tma_aligned_tensor", (X.int(),), {}, LongcatShapeError, "`sf` is torch.int32, expected"),
    ("get_mn_major_tma_aligned_tensor", (X[0],), {}, LongcatShapeError, "`sf` is of shape [128], expected [MN, K']"),
    (
        "get_mn_major_tma_aligned_tensor",
        (X.clone().requires_grad_(),),
        {},
        LongcatUnsupportedError,
        "`sf` is a tensor that requires a gradient",
    ),
]
SF = X[:, :2]
TRANSFORM = [
    ((SF, 5, 256, (1, 128)), {}, LongcatShapeError, "`sf` is of shape [4, 2], expected [5, 2]."),
    ((SF, 4, 256, (1, 128), 3), {}, LongcatShapeError, "`sf` is of shape [4, 2], expected [3, 4, 2]."),
    (
        (SF, 4, 256, (1, 128, 128)),
        {},
        LongcatShapeError,
        "`is_sfa` is None, expected True or False with a recipe of three.",
    ),
    (
        (SF, 4, 256, (1, 128), None, True),
        {},
        LongcatShapeError,
        "`is_sfa` is True, expected None with a recipe of two.",
    ),
    ((SF, 4, 256, (1, 32)), {}, LongcatUnsupportedError, "`recipe` is (1, 32), expected (1, 128, 128), (1, 128) or"),
    ((SF, 4, 256, (1, 1, 128), None, False), {}, LongcatUnsupportedError, "`recipe` is (1, 1, 128), expected"),
    ((SF, 4, 256, None), {}, LongcatUnsupportedError, "`recipe` is None, expected"),
    (
        (SF.int(), 4, 1024, (1, 128)),
        {},
        LongcatUnsupportedError,
        "`sf` is torch.int32, packed UE8M0 as on SM100, expected",
    ),
    ((SF, 4, 256, (1, 128)), {"disable_ue8m0_cast": 0}, LongcatShapeError, "`disable_ue8m0_cast` is 0, expected"),
    (
        (SF, 4, 256, (1, 128)),
        {"psum_layout": SF},
        LongcatShapeError,
        "`psum_layout` is torch.float32, expected None or",
    ),
    ((SF, 4, 0, (1, 128)), {}, LongcatShapeError, "`k` is 0, expected an int of 1 or more."),
]
CASTS += [("transform_sf_into_required_layout", *row) for row in TRANSFORM]


@pytest.mark.parametrize(("name", "args", "keywords", "error", "text"), CASTS)
def test_casts_and_layouts(name: str, args: tuple, keywords: dict, error: type[LongcatError], text: str) -> None:
    with pytest.raises(error) as caught:
        getattr(deep_gemm, name)(*args, **keywords)
    assert type(caught.value) is error and str(caught.value).startswith(f"{name}: argument {text}")
