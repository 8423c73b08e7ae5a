"""Curves: what is drawn, what is left out, and how mistakes are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trpo.report import figure
from trpo.report.plots import plot_runs, running_median

GAUSSIAN: dict[str, Any] = {"std": 0.6, "max_kl": 0.01, "episode_return": 3.0, "explained_variance": 0.5}
DISCRETE = GAUSSIAN | {"std": None}
UNBOUNDED = GAUSSIAN | {"max_kl": None}


def record(i: int, **changes: Any) -> dict[str, Any]:
    noise = np.random.default_rng(i).uniform(0.5, 1.0)
    basic = {
        "iteration": i,
        "steps": 100 * i,
        "result": "accepted",
        "mean_kl": 0.01 * noise,
        "surrogate_gain": 0.05 * noise,
        "predicted_gain": 0.06 * noise,
        "entropy": 2.0 * noise,
    }
    return basic | changes


def write(run: Path, records: list[dict[str, Any]], tail: str = "") -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is drawn, kept for inspection."""
    import matplotlib.figure

    made: list[Any] = []
    original = matplotlib.figure.Figure.savefig

    def keep(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return made


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def panel(figure: Any, title: str) -> Any:
    return next(axes for axes in figure.axes if title in axes.get_title(loc="left"))


@pytest.mark.parametrize("kind", [GAUSSIAN, DISCRETE, UNBOUNDED], ids=["gaussian", "discrete", "unbounded"])
@pytest.mark.parametrize("length", [1, 2, 120])
def test_draws_runs_of_every_kind_and_length(tmp_path: Path, kind: dict[str, Any], length: int) -> None:
    run = write(tmp_path / "run", [record(i, **kind) for i in range(1, length + 1)])
    out = plot_runs([run], tmp_path / "new" / "curves.png")
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert min(image.size) > 800
        pixels = np.asarray(image.convert("L"))
    assert (pixels < 250).mean() > 0.01
    assert not list(out.parent.glob(".*"))


def test_all_numbers_may_be_null(tmp_path: Path) -> None:
    nulls = {"iteration": 1, "steps": 100, "result": "nonfinite_batch", "mean_kl": None, "episode_return": None}
    assert plot_runs([write(tmp_path / "run", [nulls])], tmp_path / "out.png").exists()


def test_no_standard_deviation_is_said(tmp_path: Path, figures: list[Any]) -> None:
    plot_runs([write(tmp_path / "run", [record(i, **DISCRETE) for i in range(1, 4)])], tmp_path / "out.png")
    axes = panel(figures[0], "Standard deviation")
    assert "no σ" in axes.texts[0].get_text()


def test_the_bound_is_drawn_only_where_it_is_enforced(tmp_path: Path, figures: list[Any]) -> None:
    bound = write(tmp_path / "bound", [record(i, **GAUSSIAN) for i in range(1, 4)])
    free = write(tmp_path / "free", [record(i, **UNBOUNDED) for i in range(1, 4)])
    plot_runs([bound], tmp_path / "a.png")
    plot_runs([free], tmp_path / "b.png")
    with_bound, without = (panel(figure, "Mean KL").get_legend() for figure in figures)
    assert with_bound.get_texts()[0].get_text() == "bound δ = 0.01"
    assert without is None


def test_rejections_are_marked_and_counted(tmp_path: Path, figures: list[Any]) -> None:
    records = [record(i, **GAUSSIAN) for i in range(1, 11)]
    for i in (3, 7):
        records[i - 1] |= {"result": "no_improvement", "mean_kl": 0.0}
    plot_runs([write(tmp_path / "run", records)], tmp_path / "out.png")
    crosses = [line for line in panel(figures[0], "Mean KL").lines if line.get_marker() == "x"]
    np.testing.assert_array_equal(crosses[0].get_xdata(), [300, 700])
    assert legend(figures[0]) == ["run (2 of 10 updates rejected)"]


def test_runs_are_told_apart(tmp_path: Path, figures: list[Any]) -> None:
    runs = [write(tmp_path / name, [record(1)]) for name in ("a/hopper", "b/hopper", "ant")]
    plot_runs([*runs, runs[0]], tmp_path / "out.png")
    assert legend(figures[0]) == ["a/hopper", "b/hopper", "ant"]
    colours = [handle.get_color() for handle in figures[0].legends[0].legend_handles]
    assert len(set(colours)) == 3


@pytest.mark.parametrize("count", [1, 8, 30])
def test_every_run_has_a_colour_of_its_own(count: int) -> None:
    assert len({figure.colour_of(i, count) for i in range(count)}) == count


def test_a_last_line_cut_short_is_ignored(tmp_path: Path, figures: list[Any]) -> None:
    run = write(tmp_path / "run", [record(1), record(2)], '{"iteration": 3, "steps": 30')
    plot_runs([run], tmp_path / "out.png")
    np.testing.assert_array_equal(panel(figures[0], "Entropy").lines[0].get_xdata(), [100, 200])


def test_running_median_ignores_nulls_and_outliers() -> None:
    x = np.array([1.0, np.nan, 3.0, 1000.0, 5.0, np.nan])
    np.testing.assert_array_equal(running_median(x, 3), [1.0, np.nan, 501.5, 5.0, 502.5, np.nan])
    np.testing.assert_array_equal(running_median(x, 1), x)


def test_mistakes_name_the_file_and_the_cure(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    with pytest.raises(ValueError, match="no run to plot: give one"):
        plot_runs([], out)
    with pytest.raises(ValueError, match=r"nowhere has no metrics\.jsonl: is it the directory of a run"):
        plot_runs([tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match=r"empty/metrics\.jsonl has no iteration yet; plot the run after"):
        plot_runs([write(tmp_path / "empty", [])], out)
    with pytest.raises(ValueError, match=r"out.*must end in \.png"):
        plot_runs([write(tmp_path / "good", [record(1)])], tmp_path / "out.pdf")
    assert not out.exists()


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, figures: list[Any]) -> None:
    run = write(tmp_path / "damaged", [], "not JSON\n" + json.dumps(record(1)) + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 1.*left out"):
        plot_runs([run], tmp_path / "out.png")
    np.testing.assert_array_equal(panel(figures[0], "Entropy").lines[0].get_xdata(), [100])


def described(run: Path, env: str) -> Path:
    """Add what a run's directory says of its environment."""
    from trpo import Agent, Config, EnvSpec
    from trpo.envs import Box, Choice
    from trpo.runs.files import write_config

    write_config(run, Agent.create(EnvSpec(env, Box((1,)), Choice(2)), Config()), "0" * 32, None, [])
    return run


def test_environments_do_not_share_an_axis_of_returns(tmp_path: Path, figures: list[Any]) -> None:
    scores = {"a": ("Ant-v5", 900.0), "b": ("Hopper-v5", 20.0), "c": ("Hopper-v5", 30.0)}
    runs = [
        described(write(tmp_path / name, [record(1, **GAUSSIAN | {"episode_return": score})]), env)
        for name, (env, score) in scores.items()
    ]
    plot_runs(runs, tmp_path / "out.png")
    for env in ("Ant-v5", "Hopper-v5"):
        drawn = [float(line.get_ydata()[0]) for line in panel(figures[0], f"Return in {env}").lines]
        assert drawn == [score for where, score in scores.values() if where == env]
    assert legend(figures[0]) == ["a · Ant-v5", "b · Hopper-v5", "c · Hopper-v5"]
    plot_runs(runs[1:], tmp_path / "out.png")
    assert legend(figures[1]) == ["b", "c"]
    assert panel(figures[1], "Return, mean of the last 100 episodes")


@pytest.mark.parametrize("names", [["n" * 200, "_hidden", "$x$"], [f"a-long-name-of-a-run-{i}" for i in range(40)]])
def test_a_legend_is_within_the_figure_and_does_not_crush_the_panels(
    tmp_path: Path, figures: list[Any], names: list[str]
) -> None:
    plot_runs([write(tmp_path / name, [record(1, **GAUSSIAN)]) for name in names], tmp_path / "out.png")
    (drawn,) = figures
    drawn.canvas.draw()
    box, whole = drawn.legends[0].get_window_extent(), drawn.bbox
    assert (whole.x0 <= box.x0, box.x1 <= whole.x1, box.y1 <= whole.y1) == (True, True, True)
    assert len(legend(drawn)) == len(names)
    assert all(axes.get_window_extent().height > 150 for axes in drawn.axes)


def test_sweeps_of_two_environments_have_a_row_each(tmp_path: Path, figures: list[Any]) -> None:
    from trpo.report.sweep_plots import plot_sweeps

    for place, env in (("x", "Ant-v5"), ("y", "Hopper-v5")):
        plan = [{"name": f"s{seed}", "changes": {}, "seed": seed} for seed in (0, 1)]
        for variant in plan:
            described(write(tmp_path / place / variant["name"], [record(i, **GAUSSIAN) for i in (1, 2)]), env)
        (tmp_path / place / "sweep.json").write_text(json.dumps({"format": 1, "runs": plan}))
    plot_sweeps([tmp_path / "x", tmp_path / "y"], tmp_path / "out.png")
    assert legend(figures[0]) == ["x", "y"]
    for env in ("Ant-v5", "Hopper-v5"):
        assert panel(figures[0], f"Return in {env}").lines
