"""Finite MDPs solved exactly: the oracle that the library is checked against.

``mdp``, ``exact`` and ``bounds`` import none of the code that they judge; ``bridge`` alone connects the two.
"""

from trpo.tabular import bounds, exact
from trpo.tabular.bridge import exact_problem
from trpo.tabular.mdp import MDP, chain, cliff, garnet, grid

__all__ = ["MDP", "bounds", "chain", "cliff", "exact", "exact_problem", "garnet", "grid"]
