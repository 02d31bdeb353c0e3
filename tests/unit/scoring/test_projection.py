import pytest
import torch
from torch.nn.functional import normalize

from worker.scoring.projection import Projection, centering, offsets, whitening


def crowd(n: int, dims: int = 16, seed: int = 1) -> torch.Tensor:
    """Unit vectors that lean to one side, and more in some directions than in others."""
    drawn = torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))
    return normalize(drawn * torch.linspace(2, 0.2, dims) + torch.eye(dims)[0] * 3, dim=1)


@pytest.mark.parametrize("learn", [centering, whitening])
def test_projected_are_unit_vectors_around_the_origin(learn) -> None:
    project = learn(crowd(500))
    there = project(crowd(500))
    torch.testing.assert_close(torch.linalg.vector_norm(there, dim=1), torch.ones(500))
    assert crowd(500).mean(0).norm() > 0.5
    assert there.mean(0).norm() < 0.2


def test_whitening_without_shrinkage_makes_all_directions_alike() -> None:
    background = crowd(4000)
    project = whitening(background, shrinkage=0.0)
    assert project.matrix is not None
    moved = (background - project.mean) @ project.matrix
    covariance = torch.cov(moved.T)
    torch.testing.assert_close(
        covariance / covariance.diagonal().mean(), torch.eye(16), atol=0.01, rtol=0
    )


def test_whitening_wholly_shrunk_is_centering() -> None:
    background = crowd(50)
    queries = crowd(5, seed=2)
    torch.testing.assert_close(
        whitening(background, shrinkage=1.0)(queries), centering(background)(queries)
    )


def test_whitening_works_with_fewer_images_than_dimensions() -> None:
    there = whitening(crowd(10, dims=64))(crowd(5, dims=64, seed=2))
    assert there.isfinite().all()


def test_a_projection_keeps_the_precision_it_is_given() -> None:
    assert whitening(crowd(50))(crowd(3).double()).dtype == torch.float64


def test_offsets_are_the_mean_of_the_best() -> None:
    background = torch.eye(3)
    query = normalize(torch.tensor([[3.0, 2.0, 1.0]]), dim=1)
    expected = 0.5 * query[0, :2].mean()
    torch.testing.assert_close(offsets(query, background, k=2, beta=0.5), expected[None])
    torch.testing.assert_close(offsets(query, background, k=9, beta=1.0), query[0].mean()[None])
    assert offsets(query, background[:0], k=3, beta=1.0).tolist() == [0.0]
    assert Projection(torch.zeros(3))(query).allclose(query)
