"""README's results, and the part of ``docs/results.md`` on learning, with its figures."""

from __future__ import annotations

import json
import statistics
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peer_tables
from benchmarks.learning import CLASSIC, SUITES
from trpo.runs.aggregate import interval
from trpo.runs.first_format import settings_today
from trpo.settings.config import Config
from trpo.settings.presets import describe

RESULTS = Path(__file__).with_name("results")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "learning.png"
CLASSIC_FIGURE = FIGURE.with_name("learning_classic.png")
PUBLISHED: dict[str, tuple[float, str]] = {
    "Ant-v5": (4362, "OmniSafe's TRPO"),
    "HalfCheetah-v5": (7185, "Stable-Baselines3's TRPO, by OmniSafe"),
    "Hopper-v5": (3372, "sb3-contrib's TRPO"),
    "Walker2d-v5": (4502, "sb3-contrib's TRPO"),
    "Swimmer-v5": (359, "sb3-contrib's TRPO, γ 0.9999"),
    "Humanoid-v5": (3839, "OmniSafe's natural gradient"),
    "Reacher-v5": (-4.1, "Tianshou's PPO"),
    "InvertedPendulum-v5": (1000, "Tianshou's TRPO, its best"),
    "InvertedDoublePendulum-v5": (9258, "Tianshou's A2C"),
    "CartPole-v1": (500, "rl-zoo"),
    "Acrobot-v1": (-83.1, "rl-zoo"),
    "MountainCar-v0": (-107.3, "rl-zoo"),
    "MountainCarContinuous-v0": (92.5, "rl-zoo"),
    "Pendulum-v1": (-174.6, "rl-zoo, γ 0.9"),
    "LunarLander-v3": (133, "rl-zoo"),
    "LunarLanderContinuous-v3": (262, "rl-zoo"),
    "BipedalWalker-v3": (182, "rl-zoo"),
}
"""The best mean over seeds that is published for an on-policy method after as many steps, as far as we know, and whose;
classic control: single runs of rl-zoo's TRPO. Earlier versions of the tasks."""
SAC = {"Hopper-v5": 3542, "Walker2d-v5": 5007, "HalfCheetah-v5": 12139, "Ant-v5": 5850, "Humanoid-v5": 5489}
"""What SAC reaches in a million steps, off-policy: Tianshou's benchmark."""

PROTOCOL = """
*one*: the same settings for all tasks, listed below; *preset*: what `trpo train` does by itself, where it differs.
Two runs side by side, one core each. Trained in EnvPool where it has the task (that dynamics, rewards and first
states are Gymnasium's is tested: `test_envpool_equals_gymnasium.py`); the last evaluation, 20 episodes, is in
Gymnasium. *last*: mean ± standard deviation over seeds of the deterministic evaluation at the end; *IQM*: its
interquartile mean with 95 % bootstrap interval; *best*: mean over seeds of the best of the evaluations on the way,
one every 50,000 steps. The policy that is evaluated is the one that is deployed, an average of the latest policies;
*last policy*: the deterministic return of the very last one, which averaging does not change; –: not measured then.
*published*: the best mean of an on-policy method that we know after as many steps (rl-zoo: one run of its TRPO).
✓: at or above that. Other work ran beside some runs: minutes are upper bounds.
"""
OMNISAFE = """
OmniSafe's table (docs/source/benchmark/on-policy.md, Table 1) states no number of steps; its figures for Tianshou are
those of a million. HalfCheetah's 7185 is ± 3651 over seeds; next to it stand 6299 ± 1692 (Tianshou's PPO, likewise run
by OmniSafe), 5784 (Tianshou's own PPO) and 4471 (Tianshou's TRPO); Ant's 4362 is ± 641, Humanoid's 3839 ± 1655.
"""
CHOSEN = """
Which seeds settings were chosen on: all settings of these tables were chosen by trials on the seeds in the last
column, those of trials that are stored, often the very seeds that are shown, which may flatter them. From now on
settings are chosen on seeds of 100 and above. *commit*: of the library that these runs were made with; later commits
may give other digits, since rounding, shuffling or the first targets of the value function changed.
"""

NAMES = {"sb3_contrib": "sb3-contrib", "tianshou": "Tianshou"}

Records = dict[str, dict[str, list[dict[str, Any]]]]


def learning(folder: str) -> Records:
    """Return result records by task and variant, in order of seed."""
    found: Records = defaultdict(lambda: defaultdict(list))
    for path in sorted((RESULTS / folder).glob("*/*.json")):
        record = json.loads(path.read_text())
        found[record["task"]][record["variant"]].append(record)
    for variants in found.values():
        for records in variants.values():
            records.sort(key=lambda record: record["seed"])
    return found


def returns(records: Sequence[dict[str, Any]], how: str) -> list[float]:
    """Return the last evaluation of each seed."""
    return [record[how]["mean_return"] for record in records]


def number(x: float) -> str:
    """Write a return with as many digits as mean something, the same everywhere it is cited."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}"


def spread(values: Sequence[float]) -> str:
    """Write every seed's value."""
    return " / ".join(number(value) for value in values)


def mean_std(values: Sequence[float]) -> str:
    """Write mean ± sample standard deviation over seeds."""
    return (
        f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"
        if len(values) > 1
        else number(values[0])
    )


def robust(values: Sequence[float]) -> str:
    """Write interquartile mean and bootstrap interval."""
    band = interval(values)
    return f"{number(band.iqm)} [{number(band.low)}, {number(band.high)}]"


def _hours(records: Sequence[dict[str, Any]]) -> float:
    return sum(r["seconds"] + r["evaluation_seconds"] for r in records) / 3600


def suite(name: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the records of a suite's tasks that have results of the one setting, in the suite's order."""
    found = learning("learning")
    return {task: found[task] for task in SUITES[name] if found.get(task, {}).get("one")}


def _settings(variants: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the one setting's records, and the preset's where it differs."""
    for setting in ("one", "preset"):
        if variants.get(setting):
            yield setting, variants[setting]


def _suite_tables(name: str, title: str, figure: Path) -> list[str]:
    tasks = suite(name)
    if not tasks:
        return []
    every = [r for variants in tasks.values() for _, records in _settings(variants) for r in records]
    lines = [
        f"## {title}",
        "",
        *textwrap.wrap(PROTOCOL.strip(), 118),
        "",
        "| task | steps | setting | seeds | last | last policy | IQM | best | stochastic, last | published | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, variants in tasks.items():
        env, _, steps = task.partition(":")
        bar, whose = PUBLISHED[env]
        for setting, records in _settings(variants):
            last = returns(records, "deterministic")
            best = statistics.mean(r["best"]["deterministic"] for r in records)
            won = " ✓" if statistics.mean(last) >= bar else ""
            minutes = statistics.median(r["seconds"] for r in records) / 60
            lines.append(
                f"| {env} | {int(steps):,} | {setting} | {len(records)} | **{mean_std(last)}**{won} | "
                f"{_last_policy(records)} | {robust(last)} | {number(best)} | "
                f"{mean_std(returns(records, 'stochastic'))} | {number(bar)} ({whose}) | {minutes:.1f} |"
            )
    lines += [
        "",
        f"Command: `python -m benchmarks.learning --suite {name}`, about {_hours(every) / 2:.1f} hours on two cores,",
        "evaluations included. Interrupt it at any time: the same command goes on.",
        "",
        *_more_seeds(tasks),
        *([*textwrap.wrap(OMNISAFE.strip(), 118), ""] if name == "mujoco" else []),
        "Every seed, deterministic and stochastic, at the end; the largest mean KL of any iteration against δ:",
        "",
        "| task | setting | deterministic, by seed | stochastic, by seed | largest mean KL | δ | commit | trials on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, variants in tasks.items():
        for setting, records in _settings(variants):
            lines.append(
                f"| {task.partition(':')[0]} | {setting} | {spread(returns(records, 'deterministic'))} | "
                f"{spread(returns(records, 'stochastic'))} | {max(r['largest_mean_kl'] for r in records):.5f} | "
                f"{records[0]['config']['rule']['max_kl']} | {_commits(records)} | {_tried_on(task)} |"
            )
    lines += ["", *textwrap.wrap(CHOSEN.strip(), 118), "", "Settings, where they differ from the defaults:", ""]
    first = next(iter(tasks.values()))["one"][0]
    lines.append(f"* one: {_changes(first)}")
    for task, variants in tasks.items():
        if variants.get("preset"):
            lines.append(f"* preset of {task.partition(':')[0]}: {_changes(variants['preset'][0])}")
    return [*lines, "", f"![Learning curves](figures/{figure.name})", ""]


def _last_policy(records: Sequence[dict[str, Any]]) -> str:
    """Write the return of the last policies where every seed has it."""
    found = [record["last_policy"]["deterministic"]["mean_return"] for record in records if "last_policy" in record]
    return mean_std(found) if len(found) == len(records) else "–"


def _commits(records: Sequence[dict[str, Any]]) -> str:
    """Write the commits that runs were made with, each once."""
    return " ".join(sorted({commit[:7] for record in records for commit in record["commits"]}))


def _tried_on(task: str) -> str:
    """Write the seeds of all stored trials of a task; a trial is what a setting was chosen by."""
    seeds = {record["seed"] for records in learning("trials").get(task, {}).values() for record in records}
    return " ".join(map(str, sorted(seeds))) or "none"


def over_sac(setting: str) -> float | None:
    """Return the mean of score / SAC's score over the robots with legs; ``preset`` where a task has one."""
    tasks = {task.partition(":")[0]: variants for task, variants in suite("mujoco").items()}
    if not tasks.keys() >= SAC.keys():
        return None
    chosen = {env: tasks[env].get(setting) or tasks[env]["one"] for env in SAC}
    return statistics.mean(statistics.mean(returns(chosen[env], "deterministic")) / SAC[env] for env in SAC)


def _more_seeds(tasks: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """Say where there are more than five seeds, and what five gave: seeds may not be added until the mean is right."""
    lines = []
    for task, variants in tasks.items():
        for setting, records in _settings(variants):
            last = returns(records, "deterministic")
            if len(last) > 5:
                env = task.partition(":")[0]
                added = " ".join(str(record["seed"]) for record in records[5:])
                text = (
                    f"{env}, {setting}: {len(last)} seeds, since the first five came so close to the published "
                    f"{number(PUBLISHED[env][0])} (mean {number(statistics.mean(last[:5]))}) that they decided "
                    f"nothing. The others: `python -m benchmarks.learning --tasks {task} --variant {setting} "
                    f"--preset {records[5]['preset']} --seeds {added}`."
                )
                lines += textwrap.wrap(text, 118, break_on_hyphens=False)
    return [*lines, ""] if lines else []


def published_again() -> list[str]:
    """Return the section on published scores that are missed, run again over several seeds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((RESULTS / "published").glob("*.json")):
        run = json.loads(path.read_text())
        runs[run["env"]].append(run)
    if not runs:
        return []
    lines = [
        "## Published scores that are missed, over several seeds",
        "",
        "How safe are they? Swimmer's is sb3-contrib's mean of three seeds, LunarLanderContinuous's that of one run of",
        "rl-zoo. Here is sb3-contrib with that zoo's settings of today, evaluated as ours: 20 episodes, deterministic,",
        "at the end. Command: `python -m benchmarks.published`.",
        "",
        "| task | steps | published | sb3-contrib again, by seed | mean | ours, by seed | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    tasks = {task.partition(":")[0]: variants for name in SUITES for task, variants in suite(name).items()}
    for env, members in sorted(runs.items()):
        theirs = returns(members, "deterministic")
        mine = returns(tasks[env].get("preset") or tasks[env]["one"], "deterministic")
        lines.append(
            f"| {env} | {members[0]['steps']:,} | {number(PUBLISHED[env][0])} | {spread(theirs)} | "
            f"**{mean_std(theirs)}** | {spread(mine)} | **{mean_std(mine)}** |"
        )
    return [*lines, ""]


def _changes(record: dict[str, Any]) -> str:
    """Write the settings of a run that are not the defaults."""
    settings = _differing(settings_today(record["config"]), Config().to_json())
    for name in ("steps", "seed"):
        settings.pop(name, None)
    settings.get("env", {}).pop("id", None)
    text = describe({name: value for name, value in settings.items() if value != {}})
    return f"`{text}`" if text else "none"


def _differing(data: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        other = json.loads(json.dumps(others.get(name)))
        if value != other:
            found[name] = _differing(value, other) if isinstance(value, dict) else value
    return found


def _draw_suite(name: str, out: Path) -> None:
    from trpo.report.figure import colour_of, draw_band, new_figure, save_png, style

    tasks = suite(name)
    if not tasks:
        return
    columns = 3 if len(tasks) > 4 else 2
    rows = -(-len(tasks) // columns)
    figure = new_figure(4 * columns, 2.9 * rows)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel()[len(tasks) :]:
        axes.set_visible(False)
    for axes, (task, variants) in zip(figure.axes, tasks.items(), strict=False):
        env, _, steps = task.partition(":")
        style(axes, env)
        for i, (setting, records) in enumerate(_settings(variants)):
            colour = colour_of(i, 2)
            curves = [
                ([e["steps"] for e in r["evaluations"]], [e["deterministic"]["mean_return"] for e in r["evaluations"]])
                for r in records
            ]
            # Every run was evaluated after (nearly) the same steps.
            grid = curves[0][0]
            band = interval(np.stack([np.interp(grid, xs, ys) for xs, ys in curves], axis=-1))
            label = {"one": "one setting", "preset": "preset"}[setting]
            draw_band(axes, grid, band, colour, label)
            for xs, ys in curves:
                axes.plot(xs, ys, color=colour, linewidth=0.5, alpha=0.5)
            ends = returns(records, "deterministic")
            axes.plot(
                [int(steps)] * len(ends), ends, "o", color=colour, markersize=3, alpha=0.7, clip_on=False, zorder=5
            )
        axes.axhline(PUBLISHED[env][0], color="0.4", linewidth=1, linestyle=":", label="best published")
        axes.set_xlim(0, int(steps))
    handles = {text: h for axes in figure.axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel(
        "environment steps · deterministic return of 20 episodes · thick: interquartile mean over seeds · "
        "band: 95 % bootstrap interval · thin: single seeds, dots: their ends",
        fontsize=8,
        color="0.4",
    )
    save_png(figure, out, dpi=120)


def draw() -> None:
    """Draw the figures."""
    _draw_suite("mujoco", FIGURE)
    _draw_suite("classic", CLASSIC_FIGURE)


TRIALS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("trials.toml").read_text(encoding="utf-8"))
"""What was changed in the runs below ``results/trials``, by the variant's name, in the order of the tables."""

DEFAULTS_TRIED_ON = ("Hopper-v5:300000", "HalfCheetah-v5:500000", "Pendulum-v1:200000")
"""The tasks of the older trials, which have tables of their own."""


def _short(task: str) -> str:
    env, _, steps = task.partition(":")
    return f"{env.removesuffix('-v5')}, {int(steps) / 1e6:g} M"


def trials() -> list[str]:
    """Return the section on single changes, a table for MuJoCo and one for classic control."""
    found = {task: v for task, v in learning("trials").items() if task not in DEFAULTS_TRIED_ON}
    if not found:
        return []
    lines = [
        "## Longer trials",
        "",
        "One change at a time, deterministic return of 10 or 20 episodes at the end, every seed and their mean.",
        "Few seeds show large effects only: two runs of the same setting easily differ by a thousand. Command:",
        "`python -m benchmarks.learning --preset none --tasks TASK:STEPS --variant NAME SETTINGS`. *not kept*: tried",
        "with a change of the code that brought nothing. The last change of the one setting, its gain √2 and its bound",
        "on σ by the number of dimensions, was tried on the two pendulums only, then run on all tasks; the lower limit",
        "0.1 of that bound was added when Humanoid, with 0.06, had ended at 1000 twice. Ant's and Humanoid's runs of",
        "the one setting are older: then 0.1 was given as a number. Swimmer's preset was chosen on seed 3.",
        "",
    ]
    order = sorted(
        found, key=lambda task: (-int(task.partition(":")[2]), list(PUBLISHED).index(task.partition(":")[0]))
    )
    for classic in (False, True):
        lines += _trials_table(found, [task for task in order if (task.partition(":")[0] in CLASSIC) == classic])
    return lines


def _trials_table(found: Records, order: Sequence[str]) -> list[str]:
    names = [name for name in TRIALS if any(found[task].get(name) for task in order)]
    lines = [f"| variant | settings | {' | '.join(map(_short, order))} |", "|---|---|" + "---|" * len(order)]
    for name in names:
        about, settings = TRIALS[name]["about"], TRIALS[name].get("settings")
        setting = "not kept" if settings is None else f"`{settings}`" if settings else "defaults"
        cells = []
        for task in order:
            values = returns(found[task].get(name, []), "deterministic")
            cells.append(f"{spread(values)}: **{number(statistics.mean(values))}**" if values else "")
        lines.append(f"| {about} | {setting} | {' | '.join(cells)} |")
    return [*lines, ""]


def section() -> list[str]:
    """Return the lines of ``docs/results.md`` on learning."""
    return [
        *_suite_tables("mujoco", "Nine MuJoCo tasks", FIGURE),
        *_suite_tables("classic", "Classic control", CLASSIC_FIGURE),
        *published_again(),
        *trials(),
    ]


def readme() -> list[str]:
    """Return README's lines on results."""
    tasks = suite("mujoco")
    seeds = {len(records) for variants in tasks.values() for _, records in _settings(variants)}
    lines = [] if not tasks else [
        "Deterministic return at the end of a million steps, mean ± standard deviation over "
        f"{' to '.join(str(n) for n in sorted({min(seeds), max(seeds)}))} seeds:",
        "",
        "| | one setting for all | presets | best published, on-policy |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for task, variants in tasks.items():
        env = task.partition(":")[0]
        one = returns(variants["one"], "deterministic")
        preset = variants.get("preset")
        cell = mean_std(returns(preset, "deterministic")) if preset else "the same"
        bar, whose = PUBLISHED[env]
        lines.append(f"| {env} | {mean_std(one)} | {cell} | {number(bar)} ({whose}) |")
    if tasks:
        ratios = [over_sac(setting) for setting in ("one", "preset")]
        if None not in ratios:
            text = (
                "The five robots with legs against off-policy SAC (Tianshou's, a million steps), mean of score "
                f"over SAC's: {ratios[0]:.2f} with one setting, {ratios[1]:.2f} with presets. Some of the seeds "
                "shown are seeds that settings were chosen on ([which](docs/results.md#nine-mujoco-tasks)). "
                "Every seed's end is a dot:"
            )
            lines += ["", *textwrap.wrap(text, 118, break_on_hyphens=False)]
        lines += ["", f"![Learning curves of nine tasks](docs/figures/{FIGURE.name})", ""]
    data = peer_tables.load()
    for whole in data["whole"] if data else ():
        best = [row for row in whole["rows"] if row["how"] == "two processes"]
        parts = [f"{row['ratio']['median']:.1f} times as fast as {NAMES[row['against']]}" for row in best]
        over = 1 / best[0]["over_simulator"]["median"]
        lines.append(
            f"* Training on {whole['env']}, two cores, equal work, the same simulator: {', '.join(parts)}; {over:.2f} "
            "of the speed of the simulator alone in one process."
        )
    return lines
