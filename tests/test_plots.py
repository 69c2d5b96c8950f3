"""Figures are looked at by people; here they must hold what they were given."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.reporting import plots
from hf_i2i_unlearn.reporting.plots import SET_COLOURS, completion_grid, embedding_map, frontier, metric_curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been saved."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_grid_is_a_light_file(tmp_path):
    columns = {"image": torch.rand(2, 1, 8, 8), "T(x)": torch.rand(2, 1, 8, 8)}
    completion_grid({"retain": columns, "forget": columns}, tmp_path / "new" / "grid.png")
    assert Image.open(tmp_path / "new" / "grid.png").size[0] > 300 and (tmp_path / "new" / "grid.png").stat().st_size < 200_000


def test_lines_hold_the_rows(drawn):
    rows = [
        {"model": m, "set": s, "x": x, "fid": x * k, "original_fid": 1.0}
        for m, k in (("a", 1), ("b", 2))
        for s in ("retain", "forget")
        for x in (0.5, 0.1)
    ]
    metric_curves(rows, "x", {"fid": "FID", "accuracy": "not there"}, "unused.png")
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"retain a", "forget a", "retain b", "forget b", "retain original", "forget original"}
    assert lines["forget b"].get_xydata().tolist() == [[0.1, 0.2], [0.5, 1.0]]  # in order
    assert lines["retain original"].get_ydata().tolist() == [1.0, 1.0]
    assert lines["retain a"].get_color() == SET_COLOURS["retain"]
    assert lines["retain a"].get_linestyle() != lines["forget a"].get_linestyle()  # told apart without colour
    assert lines["retain a"].get_marker() != lines["retain b"].get_marker()


def test_runs_of_an_ablation_make_one_line(drawn):
    rows = [{"model": f"m{a}", "set": s, "alpha": a, "fid": 10 * a} for a in (1.0, 0.25, 0.05) for s in ("retain", "forget")]
    metric_curves(rows, "alpha", {"fid": "FID"}, "unused.png", log=True)
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert lines["forget"].get_xydata().tolist() == [[0.05, 0.5], [0.25, 2.5], [1.0, 10.0]]
    assert drawn[0].axes[0].get_xscale() == "log"


def test_words_make_bars(drawn):
    rows = [{"model": n, "set": s, "noise": n, "fid": len(n)} for n in ("uniform", "normal") for s in ("retain", "forget")]
    metric_curves(rows, "noise", {"fid": "FID"}, "unused.png")
    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["normal", "uniform"]
    assert [bar.get_height() for bar in axis.patches] == [6, 7, 6, 7]
    assert axis.patches[0].get_hatch() != axis.patches[2].get_hatch()


def test_numbers_among_words_are_in_order(drawn):
    rows = [{"model": n, "set": s, "per": n, "fid": 1} for n in ("all", "100", "5") for s in ("retain", "forget")]
    metric_curves(rows, "per", {"fid": "FID"}, "unused.png")
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["5", "100", "all"]


def test_embedding_map(drawn):
    """Two far clusters stay apart, and every picture is drawn once per panel."""
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)

    def cloud(direction):
        return 10 * torch.eye(5)[direction] + torch.randn(12, 5, generator=generator)

    groups = {"retain true": cloud(0), "retain ours": cloud(0), "forget true": cloud(1), "forget ours": cloud(2)}
    embedding_map(groups, "unused.png")
    (axis,) = drawn[0].axes
    points = {c.get_label(): np.array(c.get_offsets()) for c in axis.collections}
    assert set(points) == {"retain, true", "retain, completed", "forget, true", "forget, completed"}
    assert all(len(p) == 12 for p in points.values())
    centre = {k: p.mean(0) for k, p in points.items()}
    together = np.linalg.norm(centre["retain, true"] - centre["retain, completed"])
    apart = np.linalg.norm(centre["forget, true"] - centre["forget, completed"])
    assert apart > 3 * together
    with pytest.raises(InputError, match="t-SNE of 4 pictures"):
        embedding_map({"retain true": torch.rand(2, 3), "retain a": torch.rand(2, 3)}, "unused.png")


def test_frontier_by_another_figure(drawn):
    """The line goes through a method's best points, in multiples of the original.

    However much a point costs, it is in the picture.
    """
    points = [
        {"method": "ours", "retain_cost": c, "forget_cost": f, "retain_drift": d}
        for c, f, d in ((10.0, 24.0, 0.1), (12.5, 18.0, 0.2), (15.0, 36.0, 0.3), (90.0, 12.0, 0.4))
    ]
    frontier(points, {"retain_cost": 10.0, "forget_cost": 12.0}, "unused.png", 0.05, "cost", "FD (hole, tiny)")
    left, right = drawn[0].axes
    (line,) = [one for one in left.get_lines() if one.get_label() == "ours"]
    assert line.get_xydata().tolist() == [[1.0, 2.0], [1.5, 3.0]]
    (line,) = [one for one in right.get_lines() if one.get_label() == "ours"]
    assert line.get_xydata().tolist() == [[0.1, 2.0], [0.3, 3.0]]
    low, high = left.get_xlim()
    assert low < 1 and high > 9
    assert left.get_title().startswith("FD (hole, tiny)")


def test_frontier_takes_a_model_that_did_not_move(drawn):
    """No drift and no error have no logarithm."""
    still = {"method": "ours", "retain_mse": 0.5, "forget_mse": 0.5, "retain_drift": 0.0}
    frontier([still], {"retain_mse": 0.5, "forget_mse": 0.5}, "unused.png", 0.05)
    (line,) = [one for one in drawn[0].axes[1].get_lines() if one.get_label() == "ours"]
    assert np.isfinite(np.log(line.get_xydata())).all()
