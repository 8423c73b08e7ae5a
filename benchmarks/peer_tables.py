"""The parts of ``docs/results.md`` on the speed of whole runs beside the peers'."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def load() -> dict[str, Any] | None:
    """Return the stored report, None if there is none."""
    path = RESULTS / "peers.json"
    return json.loads(path.read_text()) if path.exists() else None


def _ratio(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} ({row['min']:.2f}–{row['max']:.2f})"


def whole_runs() -> list[str]:
    """Return the section on whole runs against the peers."""
    data = load()
    if data is None:
        return []
    work = data["work"]
    lines = [
        "## Whole runs against the peers",
        "",
        f"Training with {work['count']} environments × {work['fragment']} steps, 64×64 "
        f"networks, joint δ = {work['max_kl']}, damping {work['damping']}, {work['cg_iterations']} conjugate-gradient "
        "iterations, and",
        "the value fit of the peer compared with (sb3-contrib: 10 epochs of minibatches of 128; Tianshou: 20 steps",
        "on the whole batch), all on Gymnasium's environments, taking turns on two cores; *simulator*: 16 environments",
        "stepped one after the other in one process with random actions, nothing else.",
        f"Ratios of times round by round, median (smallest–largest), {data['rounds']} rounds. "
        "Command: `python -m benchmarks.peers`.",
        "",
        "| environment | against | ours steps in | ours, steps/s | theirs | times faster | target | met | "
        "time / simulator's (≤ 1.25) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for whole in data["whole"]:
        rate = whole["steps_per_second"]
        for row in whole["rows"]:
            theirs = rate[row["against"]]["median"]
            mine = rate[f"trpo, {row['how']}, work of {row['against']}"]["median"]
            met = "yes" if row["met"] else "at the simulator's limit" if row["at_the_limit"] else "no"
            lines.append(
                f"| {whole['env']} | {row['against']} | {row['how']} | {mine:.0f} | {theirs:.0f} | "
                f"**{_ratio(row['ratio'])}** | ≥ {row['target']:g} | {met} | {_ratio(row['over_simulator'])} |"
            )
    lines += ["", "| environment | what | steps/s |", "|---|---|---|"]
    for whole in data["whole"]:
        for name, rate in whole["steps_per_second"].items():
            lines.append(f"| {whole['env']} | {name} | {rate['median']:.0f} ({rate['min']:.0f}–{rate['max']:.0f}) |")
    pools = [w for w in data["whole"] if "envpool" in w]
    if pools:
        lines += [
            "",
            "The same training in EnvPool against the peers, which cannot be told to use it, on Gymnasium:",
            "",
        ]
        lines += ["| environment | against | times faster | ours / EnvPool alone |", "|---|---|---|---|"]
        for whole in pools:
            for name, ratio in whole["envpool"]["against"].items():
                over = _ratio(whole["envpool"]["over_simulator"])
                lines.append(f"| {whole['env']} | {name} | {_ratio(ratio)} | {over} |")
    lines += ["", "Parts alone (a peer's value fit: its update with it less its update without), and memory:", ""]
    lines += ["| environment | against | policy update, times faster | value fit, times faster | MiB: ours / theirs |"]
    lines += ["|---|---|---|---|---|"]
    for whole, updates, memory in zip(data["whole"], data["updates"], data["memory"], strict=True):
        for name in dict.fromkeys(row["against"] for row in whole["rows"]):
            fit = next(f for f in data["fits"] if f["env"] == whole["env"] and f["against"] == name)
            used = memory["bytes"]
            lines.append(
                f"| {whole['env']} | {name} | {_ratio(updates['contenders'][name]['ratio'])} | "
                f"{_ratio(fit['ratio'])} | "
                f"{used['trpo'] / 2**20:.0f} / {used[name] / 2**20:.0f} |"
            )
    return [*lines, ""]


def time_to_score() -> list[str]:
    """Return the section on the time until a return is reached."""
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "time_to_score").glob("*.json"))]
    if not runs:
        return []
    lines = [
        "## Time to a score",
        "",
        "Seconds of training, compilation included, evaluations not, until 10 deterministic episodes return the score;",
        "sb3-contrib with the settings of its zoo. One run of each side by side, one core each. A run that did not get",
        "there in a million steps says what it reached. Command: `python -m benchmarks.time_to_score`.",
        "",
        "| task | score | who | by seed |",
        "|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r["seed"]):
        groups[run["env"], run["who"]].append(run)
    for (env, who), members in sorted(groups.items(), key=lambda item: (item[0][0].removeprefix("envpool:"), item[0])):
        cells = [
            f"{r['seconds']:.0f} s ({r['steps']:,} steps)" if r["reached"]
            else f"not in {r['seconds']:.0f} s: best {r['best']:.0f}"
            for r in members
        ]  # fmt: skip
        lines.append(f"| {env} | {members[0]['score']:g} | {who} | {' · '.join(cells)} |")
    return [*lines, ""]
