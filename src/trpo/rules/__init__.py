"""Update rules: one file an algorithm."""

from trpo.rules.mm import MM
from trpo.rules.natural_gradient import NaturalGradient
from trpo.rules.penalty import Penalty, PenaltyState
from trpo.rules.ppo import PPO, PPOState
from trpo.rules.repeated import Repeated
from trpo.rules.trpo import TRPO

__all__ = ["MM", "PPO", "TRPO", "NaturalGradient", "PPOState", "Penalty", "PenaltyState", "Repeated"]
