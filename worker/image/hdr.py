"""High dynamic range on an ordinary screen: PQ and HLG, as Chromium shows them.

Chromium places 203 nits at white, takes 1,000 nits for the brightest light of a picture and
compresses what is brighter than half of white. The curve was measured with Chromium 156; the
formulas of PQ and HLG are those of ITU-R BT.2100.
"""

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]

_WHITE_NITS, _PEAK_NITS, _PQ_NITS = 203.0, 1000.0, 10_000.0
_LIGHT = np.array([
    0, 1, 1.104, 1.2003, 1.3106, 1.4504, 1.6156, 1.8113, 2.0484, 2.3366, 2.6763, 3.071, 3.5707,
    4.1689, 4.926,
])  # fmt: skip
_SHOWN = np.array([
    0, 0.5, 0.5457, 0.5776, 0.6105, 0.6445, 0.6795, 0.7157, 0.7529, 0.7913, 0.8308, 0.8714, 0.9131,
    0.956, 1,
])  # fmt: skip
"""Light of a grey in multiples of white, and what a screen shows of it."""
_HLG_SYSTEM_GAMMA = 1.2
_DARKEST = 1e-9


def light_of_pq(signal: Floats) -> Floats:
    """Light, in multiples of white, of a PQ signal from 0 to 1."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    light: Floats = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return light * (_PQ_NITS / _WHITE_NITS)


def light_of_hlg(signal: Floats, luminance: Floats) -> Floats:
    """Light, in multiples of white, of HLG signals [n, 3]; `luminance` [3] weights the channels."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 1 / 2, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    together = np.maximum(scene @ luminance, _DARKEST)[:, None]
    light: Floats = scene * together ** (_HLG_SYSTEM_GAMMA - 1)
    return light * (_PEAK_NITS / _WHITE_NITS)


def on_screen(light: Floats) -> Floats:
    """BT.2020 light [n, 3] in multiples of white, compressed to 0 to 1 by its largest channel."""
    largest = np.maximum(light.max(axis=1, keepdims=True), _DARKEST)
    shown: Floats = light * (np.interp(largest, _LIGHT, _SHOWN) / largest)
    return shown
