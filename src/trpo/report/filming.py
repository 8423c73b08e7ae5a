"""Videos while a policy is trained."""

from __future__ import annotations

import dataclasses
import warnings

from trpo.envs import EnvironmentFailure
from trpo.report.recording import check_drawn, default_path, record
from trpo.runs.callbacks import Moment
from trpo.runs.disk import directory_to_be
from trpo.settings.config import VideoConfig
from trpo.spelling import in_words

VIDEOS = "videos"


@dataclasses.dataclass
class FilmEvery:
    """Films episodes every so many steps, in an environment of its own, which changes nothing in training.

    The files are ``videos/STEPS.mp4`` in the run's directory, or ``.gif`` without the extra ``video``. An environment
    that fails while it is drawn ends no run: a warning says so.
    """

    every: int
    """Environment steps between two videos."""
    episodes: int = 1
    """Of each, the same every time."""
    max_steps: int = 1_000
    """Steps after which an episode that has not ended is cut."""

    def __post_init__(self) -> None:
        for name, value in vars(VideoConfig(**vars(self))).items():
            setattr(self, name, value)
        if not self.every:
            raise ValueError(f"video.every={self.every}: must be ≥ 1")

    def begin(self, moment: Moment) -> None:
        """See that there is something to draw, and somewhere to keep it."""
        if moment.directory is None:
            raise ValueError(f"video.every={self.every}: videos go to the run's directory: pass out=…")
        directory_to_be(moment.directory / VIDEOS)
        try:
            check_drawn(moment.template)
        except ValueError as error:
            raise ValueError(f"video.every={self.every}: {error}") from error

    def __call__(self, moment: Moment) -> None:
        """Film the agent as it is."""
        assert moment.directory is not None
        place = directory_to_be(moment.directory / VIDEOS)
        place.mkdir(exist_ok=True)
        file = place / f"{moment.steps:010d}{default_path(place).suffix}"
        try:
            record(moment.agent, file, episodes=self.episodes, max_steps=self.max_steps, tell=lambda text: None)
        except (EnvironmentFailure, ValueError) as error:
            warnings.warn(f"no video at {moment.steps:,} steps: {in_words(error)}", stacklevel=2)
