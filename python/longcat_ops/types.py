"""What ops, reference and model pass to each other besides tensors. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ROW_GROUP = 8  # rows of gate, then of up, in an interleaved weight
BLOCK = 128  # elements that share an FP8 scale: of a row of activations, and of each side of a weight's blocks

Fp8Pair = tuple["Tensor", "Tensor"]  # e4m3 values, float32 scales


class Routing(NamedTuple):
    """What the router decided for T tokens over E = N FFN + Z zero experts, K choices each.

    ids i32[T,K]: FFN expert, or -1 for a zero expert or a row that is not routed; order: score descending, lower id
    first. weights f32[T,K]: scaled score, 0 where ids is -1; a choice of weight 0 is none, whatever its id. zero_weight
    f32[T]: summed scaled score of the zero experts chosen. num_real u8[T]: FFN experts of each token. counts i32[E]:
    tokens per logical expert. errors i32[1]: rows with NaN or +inf.
    """

    ids: Tensor
    weights: Tensor
    zero_weight: Tensor
    num_real: Tensor
    counts: Tensor
    errors: Tensor


class PackedRows(NamedTuple):
    """The rows of a decode step of B sequences with up to q tokens each, T = B * q rows at most.

    ids i64[T], sequence i32[T], position i32[T]: token, sequence and place in it of each row, all -1 behind the last
    one. first_row i32[B]: the first row of each sequence, -1 where it has none. num_rows i32[copies]: the number of
    rows, each time.
    """

    ids: Tensor
    sequence: Tensor
    position: Tensor
    first_row: Tensor
    num_rows: Tensor


class DraftScores(NamedTuple):
    """Whether the newest draft of B sequences is worth verifying, as `filter_drafts` has judged. All 0 for a sequence
    that has no such draft, NaN for one whose logits are not finite.

    joint f32[B]: the probability of the drafts up to this one. entropy f32[B]: of the largest probabilities of its row,
    in nats. score f32[B]: of the classifier, 0 .. 1.
    """

    joint: Tensor
    entropy: Tensor
    score: Tensor


class Plan(NamedTuple):
    """Where the copies of T tokens lie when they are sorted by expert, R = T * min(K, G) rows at most.

    offsets i32[G+1]: rows offsets[g] .. offsets[g+1]-1 belong to expert g. row_of i32[T,K]: row of token t's k-th
    choice, -1 where it has none here. src_of i32[R]: t * K + k of each row, -1 behind the last one.
    """

    offsets: Tensor
    row_of: Tensor
    src_of: Tensor


class Placement(NamedTuple):
    """Where the replicas of N FFN experts lie, in S slots on `ranks` ranks: slot s is on rank s // (S / ranks).

    slots i32[N,M]: the slots of each expert, -1 behind its last. replicas i32[N]: how many they are. experts i32[S]:
    the expert of each slot.
    """

    slots: Tensor
    replicas: Tensor
    experts: Tensor
