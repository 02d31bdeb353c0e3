"""High dynamic range, as Chromium 156 showed it."""

import numpy as np
import pytest

from worker.image.hdr import light_of_hlg, light_of_pq, on_screen


def test_pq_in_nits() -> None:
    nits = 203 * light_of_pq(np.array([0.0, 0.508, 0.5806, 0.7518, 1.0]))
    assert np.allclose(nits, [0, 100, 203, 1000, 10_000], rtol=0.01, atol=0.01)


def test_hlg_in_nits() -> None:
    luminance = np.array([0.2627, 0.678, 0.0593])
    grey = np.repeat(np.array([[0.0], [0.75], [1.0]]), 3, axis=1)
    assert np.allclose(203 * light_of_hlg(grey, luminance)[:, 1], [0, 203, 1000], atol=2)


@pytest.mark.parametrize(
    ("light", "screen"), [(0.0, 0.0), (0.4, 0.2), (1.0, 0.5), (2.05, 0.753), (4.926, 1), (40, 1)]
)
def test_bright_light_is_compressed(light: float, screen: float) -> None:
    assert np.allclose(on_screen(np.full((1, 3), light)), screen, atol=0.002)


def test_colours_are_compressed_together() -> None:
    light = np.array([[4.0, 2.0, 1.0]])
    shown = on_screen(light)
    assert np.allclose(shown / shown[0, 0], light / light[0, 0])
    assert shown[0, 0] == on_screen(np.full((1, 3), 4.0))[0, 0]
