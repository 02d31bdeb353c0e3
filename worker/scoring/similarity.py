"""Similarity of L2-normalised descriptors."""

import math

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of descriptors, float32 [n, d] and [m, d] -> [n, m], within [-1, 1]."""
    return (a @ b.T).clamp(-1.0, 1.0)


def euclidean(cosine_similarity: float) -> float:
    """Euclidean distance of two unit vectors from their cosine: sqrt(2 - 2 cos), 0 to 2."""
    return math.sqrt(max(0.0, 2.0 - 2.0 * cosine_similarity))
