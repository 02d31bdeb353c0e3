"""Similarity of L2-normalised descriptors."""

import math

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of descriptors, float32 [n, d] and [m, d] -> [n, m], within [-1, 1]."""
    return (a @ b.T).clamp(-1.0, 1.0)


def euclidean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of descriptors, float32 [n, d] and [m, d] -> [n, m], 0 to 2.

    From their differences: a root of `2 - 2 cos` loses all but three digits where two are alike.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(max=2.0)


def euclidean_of(cosine_similarity: float) -> float:
    """The same from a cosine, where the descriptors are not at hand: sqrt(2 - 2 cos)."""
    return math.sqrt(max(0.0, 2.0 - 2.0 * cosine_similarity))
