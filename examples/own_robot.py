"""A day with a robot of one's own: an environment with Dict observations, from its check to a policy without JAX.

    python examples/own_robot.py --steps 300000 --out runs/arm

checks the environment, trains, evaluates, exports, and starts a process that has neither JAX nor trpo, in which the
policy moves the arm (``--drive FILE``). The same by the command line, in this directory:

    trpo check own_robot:Arm-v0
    trpo train own_robot:Arm-v0 --steps 300000 --out runs/arm
    trpo evaluate runs/arm --episodes 50
    trpo export runs/arm
    python own_robot.py --drive runs/arm/policy.npz
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTHS = np.array([0.5, 0.4])
"""Metres."""
MASSES, LOAD = np.array([1.0, 0.8]), 0.5
"""Kilograms; the load is at the hand."""
TORQUE = np.array([3.0, 2.0], np.float32)
FRICTION = np.array([0.6, 0.4])
PERIOD, SUBSTEPS, LIMIT = 0.05, 5, 100
"""Seconds between actions, steps of the simulation in them, and actions of an episode."""
CLOSE = 0.05


class Arm(gym.Env):
    """Two links on a table, which are to hold the hand at a target, with a load in it or without."""

    observation_space = spaces.Dict(
        joints=spaces.Dict(
            direction=spaces.Box(-1, 1, (2, 2), np.float64),  # cosine and sine of each
            velocity=spaces.Box(-np.inf, np.inf, (2,), np.float64),
        ),
        loaded=spaces.Discrete(2),
        target=spaces.Box(-1, 1, (2,), np.float64),
    )
    action_space = spaces.Box(-TORQUE, TORQUE)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin with the arm at rest anywhere, and a target in its reach."""
        super().reset(seed=seed)
        self.angle, self.velocity = self.np_random.uniform(-np.pi, np.pi, 2), np.zeros(2)
        self.loaded, self.time = int(self.np_random.integers(2)), 0
        distance, direction = self.np_random.uniform(0.3, 0.85), self.np_random.uniform(-np.pi, np.pi)
        self.target = distance * np.array([np.cos(direction), np.sin(direction)])
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply torques for a period."""
        for _ in range(SUBSTEPS):
            self.velocity = self.velocity + PERIOD / SUBSTEPS * self._acceleration(np.asarray(action, float))
            self.angle = self.angle + PERIOD / SUBSTEPS * self.velocity
        self.time += 1
        off = float(np.linalg.norm(self.hand - self.target))
        reward = -off - 0.01 * float(np.sum(np.square(action))) + float(off < CLOSE)
        return self._observation(), reward, False, self.time == LIMIT, {"is_success": off < CLOSE}

    @property
    def hand(self) -> np.ndarray:
        """Where the hand is."""
        angles = np.cumsum(self.angle)
        return np.array([LENGTHS @ np.cos(angles), LENGTHS @ np.sin(angles)])

    def _acceleration(self, torque: np.ndarray) -> np.ndarray:
        """Solve M(q) q̈ = torque − C(q, q̇) − friction, for links that are rods."""
        (a, b), (m, n), load = LENGTHS, MASSES, LOAD * self.loaded
        coupling = a * b * (n / 2 + load)
        cosine, sine = np.cos(self.angle[1]), np.sin(self.angle[1])
        inner = b**2 * (n / 3 + load)
        mixed = inner + coupling * cosine
        mass = np.array([[a**2 * (m / 3 + n + load) + inner + 2 * coupling * cosine, mixed], [mixed, inner]])
        u, v = self.velocity
        turning = coupling * sine * np.array([-v * (2 * u + v), u * u])
        return np.linalg.solve(mass, torque - turning - FRICTION * self.velocity)

    def _observation(self) -> dict[str, Any]:
        direction = np.stack([np.cos(self.angle), np.sin(self.angle)], axis=-1)
        joints = {"direction": direction, "velocity": self.velocity.copy()}
        return {"joints": joints, "loaded": self.loaded, "target": self.target.copy()}


if "Arm-v0" not in gym.registry:
    gym.register("Arm-v0", "own_robot:Arm")


def drive(file: Path, episodes: int) -> None:
    """Move the arm by an exported policy: what a robot's own program does."""
    sys.path.insert(0, str(file.parent))
    from policy import Policy  # the file that trpo export wrote beside it

    policy, arm, held, seconds = Policy(file), Arm(), [], []
    for episode in range(episodes):
        observation, ended = arm.reset(seed=episode)[0], False
        while not ended:
            start = time.perf_counter()
            action = policy(observation)
            seconds.append(time.perf_counter() - start)
            observation, _, _, ended, info = arm.step(action)
        held.append(info["is_success"])
    others = sorted({"jax", "equinox", "trpo"} & sys.modules.keys()) or "neither JAX nor trpo"
    middle, slow = 1e6 * np.percentile(seconds, [50, 99])
    print(
        f"{episodes} episodes with {others} loaded: at the target at the end of {np.mean(held):.0%}; an action takes "
        f"{middle:.0f} µs, 99 % of them less than {slow:.0f} µs"
    )


def day(steps: int, out: Path, episodes: int) -> None:
    """Check, train, evaluate and export."""
    import trpo

    sys.path.insert(0, str(Path(__file__).parent))  # where own_robot is found by its name
    found = trpo.check_environment("own_robot:Arm-v0", steps=min(steps, 1000))
    print(found)
    if found.faults:
        sys.exit(1)
    agent = trpo.train("own_robot:Arm-v0", steps=steps, seed=0, out=out)
    print(f"return {agent.evaluate(episodes=episodes).mean_return:.1f}")
    file = trpo.export(agent, out / "policy.npz")
    subprocess.run([sys.executable, __file__, "--drive", str(file), "--episodes", str(episodes)], check=True)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--out", type=Path, default=Path("runs/arm"))
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--drive", type=Path, metavar="FILE", help="move the arm by this policy.npz")
    options = parser.parse_args(arguments)
    if options.drive:
        drive(options.drive, options.episodes)
    else:
        day(options.steps, options.out, options.episodes)


if __name__ == "__main__":
    main()
