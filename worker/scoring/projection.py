"""Projections learnt from benign images, and the normalisation of scores by them.

Both make benign pictures less alike than raw descriptors have it. A projection moves the origin to
the mean of the background (centering) and may also turn its common directions down (whitening);
the cosine of what it gives is called the similarity. A score is the similarity less what the upload
has with the background anyway, as in SSCD's evaluation (Pizzi et al., arXiv 2202.10261, section 5):

    score(q, r) = similarity(q, r) - beta * mean(the k highest similarity(q, b) over background b)

so an upload that resembles everything has to resemble a reference more than that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

SHRINKAGE = 0.5
_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class Projection:
    """Descriptors to where they are compared: less `mean`, times `matrix`, L2-normalised.

    `mean` is float32 [d]; `matrix` is float32 [d, d], None for centering alone.
    """

    mean: Tensor
    matrix: Tensor | None = None

    def __call__(self, descriptors: Tensor) -> Tensor:
        """Project float32 or float64 [n, d] to L2-normalised [n, d], on their device."""
        moved = descriptors - self.mean.to(descriptors)
        if self.matrix is not None:
            moved = moved @ self.matrix.to(descriptors)
        return normalize(moved, dim=1)


def centering(background: Tensor) -> Projection:
    """Centre at the mean of the background, float32 [m, d]."""
    return Projection(background.mean(dim=0))


def whitening(background: Tensor, shrinkage: float = SHRINKAGE) -> Projection:
    """Whiten by the covariance of the background, float32 [m, d].

    The covariance C is shrunk towards the multiple of the identity with the same trace (Ledoit and
    Wolf, 2004, with a given intensity), so fewer images than dimensions will do:

        W = ((1 - shrinkage) C + shrinkage tr(C)/d I) ^ -1/2

    which is PCA whitening but for a rotation, and that changes no cosine.
    """
    mean = background.mean(dim=0)
    moved = (background - mean).double()
    covariance = moved.T @ moved / max(1, len(background) - 1)
    level = covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance)
    shrunk = (1 - shrinkage) * values.clamp(min=0) + shrinkage * level
    scale = shrunk.clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
    return Projection(mean, ((vectors * scale) @ vectors.T * level.sqrt()).float())


def offsets(queries: Tensor, background: Tensor, k: int, beta: float) -> Tensor:
    """What to take off each query's similarities: float32 [n, d] and [m, d] -> [n].

    Both are projected already, and on one device.
    """
    k = min(k, len(background))
    if k < 1 or beta == 0:
        return queries.new_zeros(len(queries))
    means = [
        (some @ background.T).topk(k, dim=1).values.mean(dim=1)
        for some in torch.split(queries, _AT_ONCE)
    ]
    return beta * torch.cat(means)
