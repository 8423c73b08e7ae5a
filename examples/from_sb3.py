"""A day's work of somebody who comes from Stable-Baselines3: CartPole and Hopper, with what callbacks did there.

    python examples/from_sb3.py [--steps 100_000] [--out runs/from-sb3] [ENV ...]

CartPole is trained for 100,000 steps, others for a million, unless --steps says otherwise.

What was there, and what it is here:

    TRPO("MlpPolicy", env).learn(100_000)        trpo.train(env, steps=100_000)
    make_vec_env(env, n_envs=8)                  EnvConfig(count=8); here the preset says how many
    hyperparameters of the RL Zoo                the preset, which trpo.train(env, steps=…) takes by itself
    VecNormalize                                 normalised anyway, and saved with the policy
    EvalCallback(best_model_save_path=…)         EvaluateConfig(every=…), then trpo.load(run, checkpoint="best")
    StopTrainingOnRewardThreshold                EvaluateConfig(stop_return=…)
    StopTrainingOnNoModelImprovement             EvaluateConfig(patience=…)
    a callback of one's own                      a function of a Moment
    tensorboard_log=…                            always on: tensorboard --logdir runs
    WandbCallback                                LogConfig(wandb="project"), WANDB_MODE=offline for no account
    model.save, TRPO.load, set_parameters        out=…, trpo.load, start_from=…
    model.predict(observation)                   agent.act(observation)
    evaluate_policy(model, env)                  agent.evaluate(episodes=10)
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import gymnasium as gym

import trpo
from trpo.settings.presets import apply_preset


class Longest:
    """A callback of one's own: it is called every so many steps, and may return why the run shall stop."""

    def __init__(self, every: int) -> None:
        self.every, self.lengths = every, list[float]()

    def __call__(self, moment: trpo.Moment) -> str | None:
        """Note how long episodes are."""
        length = moment.metrics["episode_length"]
        self.lengths += [] if length is None else [float(length)]
        return None


def main() -> None:
    """Train in each environment, load the best policy, and use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", metavar="ENV", default=["CartPole-v1", "Hopper-v5"])
    parser.add_argument("--steps", type=int, help="for each environment")
    parser.add_argument("--out", type=Path, default=Path("runs/from-sb3"))
    options = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    project = "from-sb3" if importlib.util.find_spec("wandb") else ""
    for env in options.envs:
        steps = options.steps or (100_000 if env.startswith("CartPole") else 1_000_000)
        every = max(1, steps // 20)
        run, lengths = options.out / env, Longest(every)
        preset, name, _ = apply_preset(trpo.Config(env=trpo.EnvConfig(env)), "auto")
        threshold = gym.spec(env).reward_threshold  # where Gymnasium calls it solved
        config = dataclasses.replace(
            preset,
            steps=steps,
            evaluate=trpo.EvaluateConfig(every=every, episodes=10, stop_return=threshold, patience=10),
            log=trpo.LogConfig(csv=True, wandb=project),
        )
        trpo.train(env, config=config, out=run, callbacks=[lengths], quiet=True)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        print(f"{env}, preset {name}: {last['steps']:,} of {steps:,} steps")
        best = trpo.load(run, checkpoint="best")
        print(f"  best {best.evaluate(10).mean_return:.1f}, last {trpo.load(run).evaluate(10).mean_return:.1f}")
        print(f"  episodes became {lengths.lengths[0]:.0f} to {max(lengths.lengths):.0f} steps long")
        with gym.make(env) as world:  # the loop of one's own application
            observation, _ = world.reset(seed=0)
            total, done = 0.0, False
            while not done:
                observation, reward, terminated, truncated, _ = world.step(best.act(observation))
                total, done = total + float(reward), terminated or truncated
        print(f"  one episode by hand: {total:.1f}")
        print(f"  files: {', '.join(sorted({path.name.split('.')[0] for path in run.iterdir()}))}")


if __name__ == "__main__":
    main()
