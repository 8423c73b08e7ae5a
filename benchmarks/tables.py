"""Write ``docs/results.md`` from the result files below ``benchmarks/results``, so that no number is typed by hand.

Usage: ``python -m benchmarks.tables``
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import beyond_tables, device_tables, learning_tables, peer_tables
from benchmarks.learning_tables import DEFAULTS_TRIED_ON, learning, returns, spread

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: written by python -m benchmarks.tables -->", "<!-- end of results -->"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
TRIED_ON = [task for task in DEFAULTS_TRIED_ON if not task.startswith("Pendulum")]
BARS = {
    "CartPole-v1:100000": "≥ 475, each seed",
    "Pendulum-v1:200000": "≥ −250, each seed",
    "Hopper-v5:300000": "≥ 1800, mean",
    "HalfCheetah-v5:500000": "≥ 3000, mean",
}
VARIANTS = {
    "default": "defaults: 1 update, Adam fit, fixed backtracking",
    "u2": "2 updates a batch (`--updates-per-batch 2`)",
    "u4": "4 updates a batch (`--updates-per-batch 4`)",
    "gn": "Gauss–Newton value fit (`--value.method gauss-newton`)",
    "kl": "search by measured KL (`--rule.use-measured-kl`)",
}


PENDULUM_FIRST = {
    "default": "no preset: 16 environments, fragments of 64",
    "g90": "γ = 0.9",
    "g95": "γ = 0.95",
    "g90b": "γ = 0.9, fragments of 32",
    "b512": "fragments of 32",
    "lam98": "λ = 0.98",
    "kl03": "δ = 0.03",
    "kl05": "δ = 0.05",
    "lam90": "λ = 0.9",
    "kl03g97": "δ = 0.03, γ = 0.97",
    "f256": "4 environments, fragments of 256: kept",
    "f256u2": "4 environments, fragments of 256, 2 updates",
}
PENDULUM = {
    "n_base": "10 epochs of the value fit",
    "n_e20": "20 epochs: kept",
    "n_fresh": "20 epochs, seeds 10–13, not used in the choice",
    "n_l98": "10 epochs, λ = 0.98",
    "n_2x512": "10 epochs, 2 environments, fragments of 512",
    "n_kl02": "10 epochs, δ = 0.02",
}
PENDULUM_AVERAGED = {
    "avg-e20": "20 epochs, seeds 0–2",
    "floor20": "20 epochs, σ at least 0.2: the preset, seeds 0–4 and 10–13",
}


def _acceptance() -> list[str]:
    lines = [
        "## Shorter runs",
        "",
        "Trained with the presets that `trpo train` applies by itself; 20 episodes at the end. Return of every seed",
        "(0, 1, 2), deterministic and stochastic, and the largest mean KL of any iteration against δ.",
        "",
        "| task | steps | deterministic, by seed | mean | stochastic, by seed | largest mean KL | δ | wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, variants in learning("learning").items():
        records = variants["default"]
        if not records:
            continue
        env, _, steps = task.partition(":")
        deterministic = returns(records, "deterministic")
        lines.append(
            f"| {env} | {int(steps):,} | {spread(deterministic)} | **{statistics.mean(deterministic):.0f}** | "
            f"{spread(returns(records, 'stochastic'))} | {max(r['largest_mean_kl'] for r in records):.5f} | "
            f"{records[0]['config']['rule']['max_kl']} | {BARS.get(task, '')} |"
        )
    command = "python -m benchmarks.learning --tasks " + " ".join(BARS) + " --seeds 0 1 2"
    return [*lines, "", f"Command: `{command}`.", ""]


def _trials() -> list[str]:
    lines = [
        "## Trials behind the defaults",
        "",
        "One change at a time, seeds 0–2, deterministic return of 20 episodes at the end. Three seeds show large",
        "effects only; ties keep the simpler setting. These runs are older than those above: rounding has changed",
        "since, and with it every seed's path. Command: `python -m benchmarks.learning --variant NAME FIELD=VALUE …`.",
        "",
        "| variant | " + " | ".join(f"{task.replace(':', ', ')} steps, by seed | mean" for task in TRIED_ON) + " |",
        "|---|" + "---|---|" * len(TRIED_ON),
    ]
    found = learning("trials")
    for name, description in VARIANTS.items():
        cells = []
        for task in TRIED_ON:
            values = returns(found[task][name], "deterministic")
            cells += [spread(values), f"{statistics.mean(values):.0f}"] if values else ["–", "–"]
        lines.append(f"| {description} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _pendulum() -> list[str]:
    lines = [
        "### The preset of Pendulum",
        "",
        "Deterministic return after 200,000 steps. The preset was chosen by these figures, and the seeds that it is",
        "judged by above are among them. First search, the seeds that were run (from 0), older code:",
        "",
        *_pendulum_rows(PENDULUM_FIRST),
        "",
        "Second search, four environments, fragments of 256 steps, seeds 0–3:",
        "",
        *_pendulum_rows(PENDULUM),
        "",
        "Third search, as kept above, with the average of the latest policies:",
        "",
        *_pendulum_rows(PENDULUM_AVERAGED),
        "",
    ]
    return lines


def _pendulum_rows(variants: dict[str, str]) -> list[str]:
    lines = ["| variant | by seed | mean |", "|---|---|---|"]
    found = learning("trials")["Pendulum-v1:200000"]
    for name, description in variants.items():
        values = returns(found[name], "deterministic")
        lines.append(f"| {description} | {spread(values)} | {statistics.mean(values):.0f} |")
    return lines


def _figure(row: dict[str, Any]) -> str:
    return f"{row['median']:.2f} ({row['min']:.2f}–{row['max']:.2f})"


def _speed() -> list[str]:
    path = RESULTS / "speed.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    lines = [
        "## Speed of the policy update",
        "",
        "The same batch, network, joint δ, damping and conjugate-gradient iterations for all, taking turns in one run;",
        "ratio of times, median (smallest–largest). Command: `python -m benchmarks.speed`.",
        "",
        "| case | against | times faster | target | met |",
        "|---|---|---|---|---|",
    ]
    for row in data["updates"]:
        for name, contender in row["contenders"].items():
            if "ratio" in contender:
                met = "yes" if contender["met"] else "no"
                ratio = _figure(contender["ratio"])
                lines.append(f"| {row['case']} | {name} | {ratio} | ≥ {contender['target']:g} | {met} |")
    return [*lines, ""]


def _products() -> list[str]:
    path = RESULTS / "speed.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    lines = [
        "### Fisher products, layers",
        "",
        "Necessary floating-point operations of a product a second, as a fraction of a large float32 matrix product in",
        "the same run (target at 256×256: ≥ 0.5); and the time of `vmap`ped per-example layers over that of ours.",
        "",
        "| case | fraction of peak | vmapped/ours, forward | vmapped/ours, Fisher product |",
        "|---|---|---|---|",
    ]
    layers = {row["case"]: row for row in data["layers"]}
    for row in data["fisher_vp"]:
        layer = layers.get(row["case"])
        cells = [_figure(layer[part]["ratio"]) for part in ("forward", "fisher_vp")] if layer else ["–", "–"]
        lines.append(f"| {row['case']} | {_figure(row['fraction'])} | {' | '.join(cells)} |")
    return [*lines, ""]


def _whole_run() -> list[str]:
    path = RESULTS / "whole_run.json"
    if not path.exists():
        return []
    lines = [
        "## Speed of a whole run",
        "",
        "Training with default settings against the same environments stepped alone with random actions, in turns,",
        "on two cores: ratio of times, median (smallest–largest); target ≤ 1.35.",
        "Command: `python -m benchmarks.whole_run`.",
        "",
        "| environment | training, steps/s | simulator alone, steps/s | training / simulator |",
        "|---|---|---|---|",
    ]
    for row in json.loads(path.read_text())["rows"]:
        rate = row["steps_per_second"]
        lines.append(
            f"| {row['env']} | {rate['training']['median']:.0f} | {rate['simulator']['median']:.0f} | "
            f"{_figure(row['ratio'])} |"
        )
    return [*lines, ""]


def page() -> str:
    """Return the page's text."""
    head = [
        "# Results",
        "",
        "Written by `python -m benchmarks.tables` from the files below `benchmarks/results/`; don't edit.",
        "",
    ]
    return "\n".join(
        [
            *head,
            *learning_tables.section(),
            *beyond_tables.section(),
            *_acceptance(),
            *_trials(),
            *_pendulum(),
            *peer_tables.whole_runs(),
            *peer_tables.time_to_score(),
            *_speed(),
            *_products(),
            *_whole_run(),
            *device_tables.section(),
        ]
    )


def readme(text: str) -> str:
    """Return README's text with its results as the result files have them."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, *learning_tables.readme(), END]) + after


if __name__ == "__main__":
    device_tables.draw()
    learning_tables.draw()
    PAGE.write_text(page())
    README.write_text(readme(README.read_text()))
    print(PAGE.name, README.name, "written")
