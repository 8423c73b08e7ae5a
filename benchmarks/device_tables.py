"""The part of ``docs/results.md`` on training with environments in JAX, and its figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trpo.runs.aggregate import curves_on_grid, interval

RESULTS = Path(__file__).with_name("results") / "device"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "device_learning.png"
ELSEWHERE = {
    "gymnax:CartPole-v1": "TRPO 500 in 100k (rl-zoo); PPO 500 (gymnax)",
    "gymnax:Acrobot-v1": "TRPO −83.1 in 100k (rl-zoo); PPO −80 (gymnax)",
    "gymnax:Pendulum-v1": "TRPO −174.6 in 100k (rl-zoo); PPO −130 (gymnax)",
    "gymnax:Breakout-MinAtar": "PPO 28 (gymnax, at 10M steps)",
}
"""What others report: rl-zoo's single best runs, and the checkpoints that gymnax's own README lists."""


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _tasks(folder: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]


def _figure(x: dict[str, float], digits: int = 2) -> str:
    return f"{x['median']:.{digits}f} ({x['min']:.{digits}f}–{x['max']:.{digits}f})"


def _scores(values: list[float]) -> str:
    band = interval(values)
    return f"**{band.iqm:.1f}** [{band.low:.1f}, {band.high:.1f}]"


def _learning() -> list[str]:
    tasks = _tasks("learning")
    if not tasks:
        return []
    lines = [
        "### Learning",
        "",
        "32 seeds (0–31) at once with the presets of `trpo train`; 20 episodes at the end for each seed. Interquartile mean",
        "over seeds with 95 % bootstrap interval, mean, worst seed; largest mean KL of any iteration of any seed over δ.",
        "Presets were chosen with 8 of these seeds. Command: `python -m benchmarks.device learning`.",
        "",
        "| task | steps a seed | deterministic | mean | worst seed | stochastic | largest KL / δ | all seeds took | others report |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in tasks:
        scores = r["deterministic"]
        lines.append(
            f"| {r['env']} | {r['steps']:,} | {_scores(scores)} | {np.mean(scores):.1f} | {min(scores):.1f} | "
            f"{_scores(r['stochastic'])} | {r['largest_kl_over_bound']:.4f} | {r['seconds']:.0f} s | {ELSEWHERE[r['env']]} |"
        )
    return [*lines, "", f"![Learning curves of 32 seeds](figures/{FIGURE.name})", ""]


def _throughput() -> list[str]:
    report = _load("throughput")
    if report is None:
        return []
    lean = report["lean"]
    lines = [
        "### Training against the environment stepped alone",
        "",
        "gymnax's own `step` with random actions, the same number of environments, in turns; share = training / alone (target",
        "≥ 0.50: missed by training, of any kind). *acting* collects with the 64×64 policy and learns nothing: an upper bound.",
        f"*lean*: {lean['rule']['cg_iterations']} CG iterations, Fisher products on 1/{lean['fisher_subsample']} of the "
        f"states, {lean['value']['epochs']} epoch of minibatches of {lean['value']['minibatch']}.",
        "Command: `python -m benchmarks.device throughput`.",
        "",
        "| environment | environments | what | steps/s | alone, steps/s | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['env']} | {row['environments']} | {row['variant']} | {row['steps_per_second']:.0f} | "
            f"{row['alone_steps_per_second']:.0f} | {_figure(row['share'], 3)} |"
        )
    return [*lines, ""]


def _peers() -> list[str]:
    report = _load("peers")
    if report is None:
        return []
    count, fragment = report["batch"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in report["steps_per_second"].items())
    lines = [
        "### Against peers, on CartPole",
        "",
        f"Ours on gymnax's CartPole with {count} environments × {fragment} steps. rejax: PPO, the same batch, networks and task,",
        "4 epochs of 4 minibatches. sb3-contrib: TRPO with its defaults on Gymnasium's CartPole, one thread.",
        f"Steps a second, median: {rates}. Command: `python -m benchmarks.device peers`.",
        "",
        "| ours | against | times faster | target |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        target = report["targets"][row["against"]]
        lines.append(f"| {row['variant']} | {row['against']} | {_figure(row['times_faster'])} | ≥ {target} |")
    return [*lines, ""]


def _start() -> list[str]:
    report = _load("start")
    if report is None:
        return []
    lines = [
        "### From the start of a process to a solved CartPole",
        "",
        f"One process: imports, compilation, {report['steps']:,} steps, evaluation over 20 episodes (target: return ≥ 475 within "
        f"{report['target_seconds']} s). Command: `python -m benchmarks.device start`.",
        "",
        "| seed | seconds | deterministic return |",
        "|---|---|---|",
    ]
    lines += [f"| {r['seed']} | {r['seconds']:.1f} | {r['deterministic_return']:.0f} |" for r in report["rows"]]
    return [*lines, ""]


def _seeds() -> list[str]:
    report = _load("seeds")
    if report is None:
        return []
    lines = [
        "### 32 seeds at once against one",
        "",
        "Time for the same number of iterations of each, on two cores (target: ≤ 8 times that of one; two cores that one run",
        "cannot share would give 16). Command: `python -m benchmarks.device seeds`.",
        "",
        "| environment | batch | networks | time of 32 / time of one | one, steps/s | all 32, steps/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        hidden = "×".join(map(str, row["hidden"]))
        rate = row["steps_per_second"]
        lines.append(
            f"| {row['env']} | {row['environments']} × {row['fragment']} | {hidden} | {_figure(row['ratio'], 1)} | "
            f"{rate['one']:.0f} | {rate['many']:.0f} |"
        )
    return [*lines, ""]


def _physics() -> list[str]:
    tasks = _tasks("physics")
    if not tasks:
        return []
    lines = [
        "### brax and MuJoCo Playground",
        "",
        "One seed each with the presets. Returns in training: about the first and the last hundred episodes. Speed includes",
        "compilation. Command: `python -m benchmarks.device physics`.",
        "",
        "| task | steps | first return | last return | deterministic, at the end | steps/s |",
        "|---|---|---|---|---|---|",
    ]
    for r in tasks:
        lines.append(
            f"| {r['env']} | {r['steps']:,} | {r['first_return'][0]:.0f} | {r['training_return'][0]:.0f} | "
            f"{r['deterministic'][0]:.0f} | {r['steps_per_second']:.0f} |"
        )
    return [*lines, ""]


def section() -> list[str]:
    """Return the lines of the page."""
    parts = [*_learning(), *_throughput(), *_peers(), *_start(), *_seeds(), *_physics()]
    return ["## Training on the device", "", *parts] if parts else []


def draw() -> None:
    """Draw the learning curves."""
    from trpo.report.figure import colour_of, draw_band, new_figure, save_png, style

    tasks = _tasks("learning")
    figure = new_figure(3.6 * len(tasks), 3.2)
    for axes, r in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        style(axes, r["env"].removeprefix("gymnax:"))
        curves = [np.array([[s, np.nan if y is None else y] for s, y in curve], float).T for curve in r["curves"]]
        steps, values = curves_on_grid([(c[0], c[1]) for c in curves], 100)
        known = np.isfinite(values).all(axis=-1)
        axes.plot(steps, values, color="0.8", linewidth=0.4)
        draw_band(axes, steps[known], interval(values[known]), colour_of(0, 1), alpha=0.3)
        axes.set_xlabel("environment steps of each seed")
    save_png(figure, FIGURE, dpi=110)
