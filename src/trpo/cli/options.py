"""The flags of every command, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from trpo.settings.config import Config
from trpo.settings.presets import AUTO

RunDirectory = Annotated[Positional[Path], arg(metavar="RUN", help="Directory of the run.")]


@dataclass(frozen=True)
class Train:
    """Train a policy by TRPO, leaving a run directory that can be evaluated, resumed, recorded and plotted."""

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment: a Gymnasium id, module:Id-v0, envpool:ID, gymnax:ID, brax:NAME, playground:NAME or probe:NAME."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    out: Path | None = None
    """Directory of the run; by default runs/ENV-sSEED."""
    preset: str = AUTO
    """Name of a preset, auto (by environment) or none."""
    quiet: bool = False
    """Show no progress."""
    seeds: int = 1
    """Independent runs, from --seed on, each with a directory of its own; in JAX all at once."""
    vary: tuple[str, ...] = ()
    """Settings to try several values of, in every combination: rule.max-kl=0.01,0.02 discount=0.98,0.99."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its newest intact checkpoint."""

    run: RunDirectory
    steps: int | None = None
    """Train to this many steps instead of the configured number."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class Evaluate:
    """Run whole episodes with the newest checkpoint and report undiscounted returns."""

    run: RunDirectory
    episodes: int = 10
    """Episodes to run."""
    stochastic: bool = False
    """Sample actions instead of taking the distribution's mode."""
    seed: int = 0
    """Of the environments and of sampled actions."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Record:
    """Render episodes of the newest checkpoint to a video, headless."""

    run: RunDirectory
    out: Path | None = None
    """A .mp4 (needs the extra `video`) or .gif file; by default in the run's directory."""
    episodes: int = 1
    """Episodes to show."""
    stochastic: bool = False
    """Sample actions instead of taking the distribution's mode."""
    seed: int = 0
    """Of the environment and of sampled actions."""


@dataclass(frozen=True)
class Plot:
    """Draw learning curves and diagnostics of one or more runs."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Directories of runs."""
    out: Path | None = None
    """A PNG file; by default curves.png in the first run's directory."""


@dataclass(frozen=True)
class Theory:
    """Check every claim of the theory on exact MDPs, draw the figures and write a page; exit 1 if a claim fails."""

    out: Path = Path("runs/theory")
    """Directory for index.html, claims.json, claims.md, equations.md and figures/."""
    mdps: int = 1024
    """Random MDPs for each claim, at least 16."""
    seed: int = 0
    """Of the random MDPs."""
    only: tuple[str, ...] = ()
    """Names of the claims to check, such as fisher; all by default."""
    quiet: bool = False
    """Print the table alone, no progress."""
