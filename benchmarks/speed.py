"""Measure our policy update against sb3-contrib's and Tianshou's, and our Fisher product against the hardware.

    python -m benchmarks.speed [--quick] [--peer-python PATH] [--half-cheetah]

Contenders take turns in one run on equal threads, so the *ratios* are the result: absolute times belong to the
machine. The table goes to standard output, everything to ``benchmarks/results/speed.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks import cases, products
from benchmarks.peer_process import LIBRARIES, Peer, installed
from benchmarks.timing import Background, interleave, machine, met, pin, ratios, repeat, summary, turn, versions

TARGETS = {"sb3_contrib": 4.0, "tianshou": 3.0}
PEAK_TARGET = 0.5
PEAK_TARGET_WIDTH = 256
RESULTS = Path(__file__).with_name("results") / "speed.json"
UPDATES_A_TURN = 3


def compare_updates(case: cases.Case, peers: list[Peer], rounds: int, background: Background) -> dict[str, Any]:
    """Time one policy update of every contender on one case, and judge what each did."""
    arrays = cases.make(case)
    mine = cases.Ours(arrays)
    mine.update()  # compiles
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        path = cases.store(arrays, directory)
        for peer in peers:
            peer.load(path, max_kl=cases.MAX_KL, damping=cases.DAMPING, cg_iterations=cases.CG_ITERATIONS)
            peer.time(2)
        contenders = {"trpo": lambda: turn(repeat(mine.update, UPDATES_A_TURN))}
        contenders |= {p.library: lambda p=p: turn(p.time(UPDATES_A_TURN)) for p in peers}
        seconds = interleave(contenders, rounds, background)
        after = {"trpo": mine.arrays()} | {peer.library: peer.result(directory) for peer in peers}
    rows = {}
    for name, values in seconds.items():
        rows[name] = {"seconds": summary(values), "step": cases.judge(arrays, after[name], after["trpo"])}
        if name in TARGETS:
            ratio = ratios(values, seconds["trpo"])
            rows[name] |= {"ratio": ratio, "target": TARGETS[name], "met": met(ratio, TARGETS[name])}
    return {"case": case.name, "contenders": rows}


def print_updates(row: dict[str, Any]) -> None:
    """Print one case's block of the first table."""
    print(f"\nPolicy update, {row['case']}")
    header = f"  {'':12} {'ms: median':>11} {'min':>8} {'max':>8} {'joint KL':>9} {'gain':>8} {'cosine':>7}"
    print(f"{header}  slower than trpo")
    for name, r in row["contenders"].items():
        ms = {key: 1e3 * value for key, value in r["seconds"].items()}
        step = r["step"]
        line = f"  {name:12} {ms['median']:11.2f} {ms['min']:8.2f} {ms['max']:8.2f}"
        line += f" {step['mean_kl']:9.5f} {step['surrogate_gain']:8.4f} {step['cosine']:7.4f}"
        if "ratio" in r:
            line += f"  {_spread(r['ratio'])}  target ≥ {r['target']:g}: {_verdict(r['met'])}"
        print(line)


def print_peak(row: dict[str, Any]) -> None:
    """Print one line of the second table."""
    rate = {name: value["median"] for name, value in row["gflops"].items()}
    line = f"  {row['case']:32} FVP {rate['fisher_vp']:6.1f}  matmul {rate['square']:6.1f}"
    line += f" (batch-shaped {rate['tall']:6.1f})  fraction {_spread(row['fraction'])}"
    if "met" in row:
        line += f"  target ≥ {row['target']:g}: {_verdict(row['met'])}"
    print(line)


def print_layers(row: dict[str, Any]) -> None:
    """Print one line of the third table."""
    print(f"  {row['case']:32} forward {_spread(row['forward']['ratio'])}  FVP {_spread(row['fisher_vp']['ratio'])}")


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}; best turns {ratio['of_bests']:.2f})"


def _verdict(reached: bool) -> str:
    return "met" if reached else "MISSED"


def start_peers(python: Path, threads: int, stack: ExitStack) -> list[Peer]:
    """Start a worker for each library, or say what is missing."""
    if not installed(python):
        return []
    return [stack.enter_context(closing(Peer(python, library, threads))) for library in LIBRARIES]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, printing as it goes."""
    threads = pin(arguments.threads)
    print(f"{threads} threads for every contender. Update: δ = {cases.MAX_KL} (joint), λ = {cases.DAMPING},")
    print(f"{cases.CG_ITERATIONS} CG iterations; no critic, no rollout. KL and gain by one float64 function for all.")
    background = Background()
    rounds = arguments.rounds or (2 if arguments.quick else 15)
    sizes = [(2048, 64)] if arguments.quick else [(n, width) for width in (64, 256) for n in (2048, 16384)]
    shapes = [cases.HOPPER] + ([cases.HALF_CHEETAH] if arguments.half_cheetah else [])
    hopper = [cases.Case(n, width) for n, width in sizes]
    report: dict[str, Any] = {"rounds": rounds, "quick": arguments.quick, "machine": machine(threads)}
    with ExitStack() as stack:
        peers = start_peers(arguments.peer_python, threads, stack)
        report["updates"] = []
        for shape in shapes:
            for n, width in sizes:
                report["updates"].append(compare_updates(cases.Case(n, width, *shape), peers, rounds, background))
                print_updates(report["updates"][-1])
        report["versions"] = versions("jax", "jaxlib", "equinox", "numpy", "trpo")
        for peer in peers:
            report["versions"] |= peer.versions
    print("\nFisher–vector product, GFLOP/s of necessary matrix multiplications against float32 matmul")
    report["fisher_vp"] = []
    for case in hopper:
        row = products.against_peak(case, rounds, background)
        if case.width == PEAK_TARGET_WIDTH:
            row |= {"target": PEAK_TARGET, "met": met(row["fraction"], PEAK_TARGET)}
        report["fisher_vp"].append(row)
        print_peak(row)
    print("\nBatched layers: how much slower jax.vmap(eqx.nn.MLP) is")
    report["layers"] = []
    for case in hopper:
        report["layers"].append(products.against_vmap(case, rounds, background))
        print_layers(report["layers"][-1])
    report["background"] = background.report()
    if background.warning():
        print(f"\n{background.warning()}")
    return report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: one size, few repeats")
    parser.add_argument("--rounds", type=int, default=0, help="turns for each contender (default 15; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=2, help="threads for every contender (default 2)")
    parser.add_argument("--half-cheetah", action="store_true", help="also HalfCheetah's shape (17 → 6)")
    parser.add_argument(
        "--peer-python", type=Path, default=Path(".venv-peers/bin/python"), help="the peers' interpreter"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file (default benchmarks/results/speed.json)")
    arguments = parser.parse_args(argv)
    report = run(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nWritten: {arguments.out}")


if __name__ == "__main__":
    main()
