import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sld_core import heatmap
from sld_core.config.scene import BufferConfig, DecodeConfig
from sld_core.heatmap import ScoreMaps
from sld_core.training.feature_buffer import pick_cells
from sld_core.types import Visibility

CONFIG = DecodeConfig()


def maps_showing(xy_px, shape=(480, 640), score=0.9):
    """Score maps of a perfect head, built from the training targets themselves."""
    h, w = heatmap.grid_size(*shape)
    score_Lhw, offset_2hw = torch.zeros(len(xy_px), h, w), torch.zeros(2, h, w)
    quiet = BufferConfig(background_cells=0)
    visible = np.full(len(xy_px), Visibility.VISIBLE)
    cell, landmark, offset = pick_cells(
        shape, np.asarray(xy_px, float), visible, quiet, np.random.default_rng(0)
    )
    score_Lhw.flatten(1)[landmark, cell] = score
    offset_2hw.flatten(1)[:, cell] = torch.from_numpy(offset.T)
    return ScoreMaps(score_Lhw, offset_2hw, torch.full((h, w), 0.1))


@given(st.floats(0, 640), st.floats(0, 480))
def test_pixel_cell_round_trip(x, y):
    np.testing.assert_allclose(
        heatmap.cell_to_pixel(heatmap.pixel_to_cell(np.array([x, y]))), [x, y], atol=1e-9
    )


def test_the_centre_of_the_first_cell_is_pixel_4():
    np.testing.assert_array_equal(heatmap.cell_to_pixel(np.array([0.0, 0.0])), [4.0, 4.0])
    assert heatmap.grid_size(360, 540) == (45, 68)


@given(st.floats(5, 635), st.floats(5, 475))
def test_targets_decode_to_the_pixel_they_were_made_of(x, y):
    """The round trip that finds a half-cell slip: pixel -> training target -> decoded pixel."""
    found = heatmap.decode(maps_showing([(x, y)]), CONFIG)
    assert len(found) == 1
    np.testing.assert_allclose(found.xy_px_K2[0], [x, y], atol=1e-3)
    assert found.sigma_px_K[0] == pytest.approx(0.8)


def test_decode_orders_by_score_and_drops_weak_ones():
    maps = maps_showing([(100.0, 100.0), (300.0, 200.0), (500.0, 400.0)])
    maps.score_Lhw[0] *= 0.2
    maps.score_Lhw[1] *= 0.8
    found = heatmap.decode(maps, CONFIG)
    assert found.landmark_K.tolist() == [2, 1]


def test_decode_near_ignores_a_stronger_peak_elsewhere():
    maps = maps_showing([(100.0, 100.0)])
    maps.score_Lhw[0, 50, 70] = 0.99
    far = heatmap.decode(maps, CONFIG)
    near = heatmap.decode_near(maps, np.array([[104.0, 97.0]]), CONFIG)
    assert np.linalg.norm(far.xy_px_K2[0] - [100, 100]) > 100
    np.testing.assert_allclose(near.xy_px_K2[0], [100, 100], atol=1e-3)


@pytest.mark.parametrize("where", [(np.nan, np.nan), (-50.0, 20.0), (700.0, 100.0), (100.0, 200.0)])
def test_decode_near_finds_nothing_where_there_is_nothing(where):
    assert len(heatmap.decode_near(maps_showing([(400.0, 400.0)]), np.array([where]), CONFIG)) == 0


def test_decode_at_the_border_stays_in_the_map():
    found = heatmap.decode(maps_showing([(0.5, 0.5), (639.5, 479.5)]), CONFIG)
    by_landmark = found.xy_px_K2[np.argsort(found.landmark_K)]
    np.testing.assert_allclose(by_landmark, [(0.5, 0.5), (639.5, 479.5)], atol=1e-3)
