"""A day's work of somebody who wants the loop: evaluation, the best checkpoint, an early stop, and `kill -9`.

    python examples/own_loop.py [--steps 100_000] [--out runs/own-loop] [--env CartPole-v1]

The loop trains in a process of its own, which kills itself in the middle. The second process goes on from the newest
checkpoint, and ends early when evaluation says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import trpo


def loop(env: str, steps: int, out: Path, die_at: int) -> None:
    """Train in a loop of one's own, which may be killed at any moment; ``die_at``: in this iteration."""
    config = trpo.Config(
        steps=steps,
        fragment=32,
        env=trpo.EnvConfig(env, count=8),
        evaluate=trpo.EvaluateConfig(every=max(1, steps // 10), episodes=5, stop_return=475.0),
        checkpoint_every=2,
    )
    with trpo.run(out, trpo.make_agent(env, config)) as run:
        print(f"goes on at iteration {run.state.iteration}", flush=True)
        for state, metrics in trpo.iterations(env, run.agent, state=run.state):
            assert metrics["max_kl"] is None or metrics["mean_kl"] <= metrics["max_kl"]
            if reason := run.write(state, metrics):
                print(f"stopped at {state.steps:,} steps: {reason}")
                break
            if state.iteration == die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the loop until it is killed, then to its end, and look at what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("runs/own-loop"))
    parser.add_argument("--die-at", type=int, default=5, help="iteration in which the first process is killed")
    parser.add_argument("--loop", action="store_true", help="be the process that trains")
    options = parser.parse_args()
    if options.loop:
        loop(options.env, options.steps, options.out, options.die_at)
        return
    again = [sys.executable, __file__, "--loop", "--env", options.env, "--steps", str(options.steps)]
    again += ["--out", str(options.out)]
    killed = subprocess.run([*again, "--die-at", str(options.die_at)], check=False)
    print(f"the first process ended with {killed.returncode} (−9 is kill -9)")
    loop(options.env, options.steps, options.out, die_at=-1)
    for which in ("last", "best"):
        agent = trpo.load(options.out, checkpoint=which)
        print(f"{which}: {agent.evaluate(5).mean_return:.1f}")


if __name__ == "__main__":
    main()
