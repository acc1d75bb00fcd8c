"""The fifteen corruptions: repeatable bytes, grey and colour, any size; and what each one does to an image of which that is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cactus_edge import corruptions
from cactus_edge.corruptions import CORRUPTIONS, corrupt, digital, geometry
from cactus_edge.errors import DataError, InputError

Images = np.ndarray[Any, np.dtype[np.float32]]


def pictures(count: int = 6, size: tuple[int, int] = (16, 16), channels: int = 3) -> Images:
    """Smooth coloured waves, on the grid of bytes."""
    down, right = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 2, size[1]), indexing="ij")
    phase = np.arange(count * channels).reshape(count, 1, 1, channels)
    wave = 0.5 + 0.4 * np.sin(down[None, :, :, None] + phase) * np.cos(right[None, :, :, None] - phase)
    return (np.rint(255 * wave) / 255).astype(np.float32)


DIGEST = "8de6e4412ee056774b13e49b52609669373460d85e27233ab9aa2bd878912bf3"


def digest(x: Images, seed: int) -> str:
    """Over every corruption but JPEG, whose bytes are those of Pillow's library."""
    h = hashlib.sha256()
    for name in CORRUPTIONS:
        for severity in (1, 3, 5):
            if name != "jpeg":
                h.update(np.rint(255 * corrupt(x, name, severity, seed)).astype(np.uint8).tobytes())
    return h.hexdigest()


def test_the_bytes_are_those_of_the_seed_in_every_run() -> None:
    assert digest(pictures(), 0) == DIGEST
    assert digest(pictures(), 1) != DIGEST


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(
    ("size", "channels"), [((8, 8), 1), ((28, 28), 1), ((24, 33), 3)], ids=["least", "grey", "oblong"]
)
def test_any_image_stays_one_and_harder_is_further(name: str, size: tuple[int, int], channels: int) -> None:
    x = pictures(4, size, channels)
    far = []
    for severity in (1, 5):
        found = corrupt(x, name, severity, 3)
        assert found.shape == x.shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1
        assert np.allclose(255 * found, np.rint(255 * found), atol=1e-4), "bytes / 255"
        assert np.array_equal(found, corrupt(x, name, severity, 3))
        far.append(float(np.abs(found - x).mean()))
    if size != (8, 8):  # there a blur is narrower than a pixel
        assert far[1] > 0.001
        # The affine map of elastic shrinks, glass moves by whole pixels, frost darkens while it whitens.
        assert far[1] > far[0] or name in ("elastic", "glass blur", "frost")


@pytest.mark.parametrize("side", [8, 16, 28, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_changes_images_of_every_size(name: str, side: int) -> None:
    x = (np.random.default_rng(side).integers(0, 256, (3, side, side, 1)) / 255).astype(np.float32)
    for severity in range(1, 6):
        assert np.abs(corrupt(x, name, severity) - x).max() > 4 / 255, severity


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (20, 32)])
def test_pixelate_is_pillows_box_filter_twice(size: tuple[int, int]) -> None:
    """As the authors have it; up to the bytes that Pillow rounds to after each of four passes."""
    x = (np.random.default_rng(0).integers(0, 256, (1, *size, 1)) / 255).astype(np.float32)
    for severity, part in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), start=1):
        image = Image.fromarray(np.rint(255 * x[0, :, :, 0]).astype(np.uint8))
        small = image.resize((int(size[1] * part), int(size[0] * part)), Image.Resampling.BOX)
        there = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX), np.float64)
        assert np.abs(there - 255 * corrupt(x, "pixelate", severity)[0, :, :, 0]).max() <= 1.01


def test_chunks_do_not_depend_on_how_many_images_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "CHUNK", 2)
    x = pictures(6)
    for name in CORRUPTIONS:
        assert np.array_equal(corrupt(x, name, 3)[:4], corrupt(x[:4], name, 3))


def flat(value: float = 0.4) -> Images:
    return np.full((3, 12, 12, 3), np.float32(np.rint(255 * value) / 255))


MIXING = ("defocus blur", "glass blur", "motion blur", "zoom blur", "contrast", "elastic", "pixelate", "jpeg")


@pytest.mark.parametrize("name", MIXING)
def test_what_only_mixes_pixels_keeps_a_flat_image(name: str) -> None:
    for severity in range(1, 6):
        assert np.abs(255 * (corrupt(flat(), name, severity) - flat())).max() <= 1.01


def test_noise_has_the_moments_it_is_named_for() -> None:
    x = np.full((50, 32, 32, 1), np.float32(128 / 255))
    gaussian = corrupt(x, "gaussian noise", 3) - x
    assert abs(gaussian.mean()) < 0.002 and gaussian.std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(x, "shot noise", 5) - x
    assert abs(shot.mean()) < 0.003 and shot.std() == pytest.approx(np.sqrt(128 / 255 / 50), rel=0.02)
    impulse = corrupt(x, "impulse noise", 5)
    assert (impulse != x).mean() == pytest.approx(0.07, rel=0.05)
    assert set(np.unique(impulse[impulse != x])) == {0, 1}


def test_brightness_keeps_hue_and_saturation() -> None:
    x = np.array([[0.2, 0.4, 0.1], [0, 0, 0], [0.95, 0.5, 0.5]])[None, None]
    found = digital.brightness(x, 2, np.random.default_rng(0))
    assert found[0, 0, 0] == pytest.approx([0.275, 0.55, 0.1375]) and found[0, 0, 1] == pytest.approx([0.15] * 3)
    assert found[0, 0, 2] == pytest.approx([1, 0.5 / 0.95, 0.5 / 0.95])


def test_glass_only_moves_pixels_where_it_hardly_blurs() -> None:
    x = pictures(3, (12, 12), 1)
    found = corrupt(x, "glass blur", 1)
    for before, after in zip(x, found, strict=True):
        assert sorted(before.ravel().tolist()) == sorted(after.ravel().tolist())
    assert not np.array_equal(x, found)


def test_motion_is_a_streak_in_one_direction() -> None:
    x = np.zeros((2, 33, 33))
    x[:, 16, 16] = 1
    level, upright = geometry.streaked(x, 6, 2.0, np.array([0.0, 90.0]))
    assert level.sum() == pytest.approx(1) and np.count_nonzero(level[16]) == np.count_nonzero(level) == 13
    assert np.array_equal(level, upright.T)


def test_magnified_once_is_the_image_itself() -> None:
    x = np.random.default_rng(0).random((2, 9, 10, 3))
    assert np.allclose(geometry.magnified(x, 1.0), x)
    assert np.allclose(geometry.sampled(x, *np.indices((9, 10))[:, None].astype(float)), x)
    assert geometry.reflected(np.array([-2, -1, 0, 3, 4, 5]), 4).tolist() == [1, 0, 0, 3, 3, 2]


def test_plasma_is_cloudy() -> None:
    clouds = geometry.plasma(20, 32, 2.0, np.random.default_rng(0))
    assert clouds.min() == 0 and clouds.max() == 1
    beside = np.abs(np.diff(clouds, axis=2)).mean()
    apart = np.abs(clouds[:, :, :16] - clouds[:, :, 16:]).mean()
    assert beside < apart / 3


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda: corrupt(flat(), "hail", 1), InputError, id="no_such_corruption"),
        pytest.param(lambda: corrupt(flat(), "snow", 6), InputError, id="severity_6"),
        pytest.param(lambda: corrupt(flat() + 1, "snow", 1), DataError, id="beyond_one"),
        pytest.param(lambda: corrupt(flat() * np.float32(np.nan), "snow", 1), DataError, id="nan"),
        pytest.param(lambda: corrupt(flat()[:, :7], "snow", 1), DataError, id="too_small"),
        pytest.param(lambda: corrupt(flat()[..., :2], "snow", 1), DataError, id="two_channels"),
        pytest.param(lambda: corrupt(np.zeros((4, 128, 1, 6), np.float32), "snow", 1), DataError, id="a_signal"),
    ],
)
def test_what_is_no_image_is_refused(spoil: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        spoil()
