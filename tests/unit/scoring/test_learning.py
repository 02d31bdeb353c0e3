import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import calibration, unit_rows
from worker.errors import StoreError
from worker.scoring.calibration import SPARE
from worker.scoring.learning import learn, nearest, usual_beta


def queries(seed, count):
    return torch.from_numpy(unit_rows(seed, count)).float()


@pytest.mark.parametrize("way", ["none", "centre", "whiten"])
def test_what_is_learnt_is_of_the_background_as_stored(way):
    one = calibration(way=way, null=5, looks=("plain", "centre_crop"))
    similar = one.project(one.probes) @ one.project(one.background).T
    assert one.nearest == pytest.approx(similar.topk(3 + SPARE).values.numpy(), abs=1e-5)
    assert (one.projection is None) == (way == "none")
    if one.projection is not None:
        assert one.projection.mean.numpy() == pytest.approx(
            one.background.mean(0).numpy(), abs=1e-6
        )


def test_beta_goes_by_the_size_of_the_background():
    assert (usual_beta(999), usual_beta(1000)) == (0.5, 1.0)
    assert calibration().beta == 0.5
    assert calibration(background=1000).beta == 1.0
    assert calibration(beta=0.0).beta == 0.0


@pytest.mark.parametrize(
    ("background", "null", "groups"), [(0, 5, 5), (5, 0, 0), (5, 5, 4)], ids=str
)
def test_images_that_do_not_go_together_are_refused(background, null, groups):
    rows, images = unit_rows(1, background), unit_rows(2, null)[:, None]
    with pytest.raises(StoreError, match="cannot be used"):
        learn("a" * 64, rows, images, np.arange(groups))


def test_nearest_are_highest_first_and_at_most_as_many_as_there_are():
    values, images = nearest(queries(1, 5), queries(2, 40), k=3)
    similar = (queries(1, 5) @ queries(2, 40).T).numpy()
    assert values.shape == (5, 3 + SPARE)
    assert values == pytest.approx(np.sort(similar, axis=1)[:, ::-1][:, : 3 + SPARE])
    assert np.take_along_axis(similar, images, axis=1) == pytest.approx(values)
    assert nearest(queries(1, 5), queries(2, 4), k=3)[0].shape == (5, 4)
