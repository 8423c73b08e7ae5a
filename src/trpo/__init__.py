"""trpo: trust-region policy optimization on JAX.

Every public name is importable from here and loaded when first used, so that ``import trpo`` is quick and a
simulator process that needs no JAX does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trpo._version import __version__

if TYPE_CHECKING:
    from trpo import tabular as tabular
    from trpo.advantages import gae as gae
    from trpo.advantages import lambda_returns as lambda_returns
    from trpo.advantages import standardise as standardise
    from trpo.agent import Agent as Agent
    from trpo.config import Config as Config
    from trpo.config import EnvConfig as EnvConfig
    from trpo.config import PolicyConfig as PolicyConfig
    from trpo.config import RuleConfig as RuleConfig
    from trpo.config import ValueConfig as ValueConfig
    from trpo.distributions import Bernoulli as Bernoulli
    from trpo.distributions import Categorical as Categorical
    from trpo.distributions import DiagGaussian as DiagGaussian
    from trpo.distributions import Distribution as Distribution
    from trpo.distributions import MultiCategorical as MultiCategorical
    from trpo.envs import EnvironmentFailure as EnvironmentFailure
    from trpo.evaluation import EvaluationResult as EvaluationResult
    from trpo.evaluation import evaluate as evaluate
    from trpo.fisher import fisher_vp as fisher_vp
    from trpo.jax_envs import JaxEnv as JaxEnv
    from trpo.jax_envs import Step as Step
    from trpo.jax_envs import from_brax as from_brax
    from trpo.jax_envs import from_gymnax as from_gymnax
    from trpo.jax_envs import make_envs as make_envs
    from trpo.linear_solve import CGInfo as CGInfo
    from trpo.linear_solve import conjugate_gradient as conjugate_gradient
    from trpo.networks import MLP as MLP
    from trpo.networks import BernoulliPolicy as BernoulliPolicy
    from trpo.networks import CategoricalPolicy as CategoricalPolicy
    from trpo.networks import GaussianPolicy as GaussianPolicy
    from trpo.networks import MultiCategoricalPolicy as MultiCategoricalPolicy
    from trpo.networks import StateDependentGaussianPolicy as StateDependentGaussianPolicy
    from trpo.networks import ValueFunction as ValueFunction
    from trpo.networks import as_function as as_function
    from trpo.networks import mlp as mlp
    from trpo.objectives import importance_sampled_surrogate as importance_sampled_surrogate
    from trpo.problem import Batch as Batch
    from trpo.problem import LocalProblem as LocalProblem
    from trpo.problem import sampled_problem as sampled_problem
    from trpo.results import Result as Result
    from trpo.results import Rule as Rule
    from trpo.results import UpdateInfo as UpdateInfo
    from trpo.rules import MM as MM
    from trpo.rules import TRPO as TRPO
    from trpo.rules import NaturalGradient as NaturalGradient
    from trpo.rules import Penalty as Penalty
    from trpo.running_statistics import RunningStatistics as RunningStatistics
    from trpo.runs import RunFailed as RunFailed
    from trpo.runs import load as load
    from trpo.runs import resume as resume
    from trpo.runs import train as train
    from trpo.search import Evaluation as Evaluation
    from trpo.search import line_search as line_search
    from trpo.sweeps import sweep as sweep
    from trpo.tabular import exact_problem as exact_problem
    from trpo.training import NonFiniteBatchError as NonFiniteBatchError
    from trpo.training import TrainingState as TrainingState
    from trpo.training import iterations as iterations
    from trpo.training import make_agent as make_agent
    from trpo.value_fitting import AdamFit as AdamFit
    from trpo.value_fitting import GaussNewtonFit as GaussNewtonFit

_PUBLIC = {
    "advantages": ("gae", "lambda_returns", "standardise"),
    "agent": ("Agent",),
    "config": ("Config", "EnvConfig", "PolicyConfig", "RuleConfig", "ValueConfig"),
    "envs": ("EnvironmentFailure",),
    "jax_envs": ("JaxEnv", "Step", "from_brax", "from_gymnax", "make_envs"),
    "sweeps": ("sweep",),
    "evaluation": ("EvaluationResult", "evaluate"),
    "training": ("NonFiniteBatchError", "TrainingState", "iterations", "make_agent"),
    "distributions": ("Bernoulli", "Categorical", "DiagGaussian", "Distribution", "MultiCategorical"),
    "fisher": ("fisher_vp",),
    "linear_solve": ("CGInfo", "conjugate_gradient"),
    "networks": (
        "MLP",
        "BernoulliPolicy",
        "CategoricalPolicy",
        "GaussianPolicy",
        "MultiCategoricalPolicy",
        "StateDependentGaussianPolicy",
        "ValueFunction",
        "as_function",
        "mlp",
    ),
    "objectives": ("importance_sampled_surrogate",),
    "problem": ("Batch", "LocalProblem", "sampled_problem"),
    "results": ("Result", "Rule", "UpdateInfo"),
    "rules": ("MM", "TRPO", "NaturalGradient", "Penalty"),
    "running_statistics": ("RunningStatistics",),
    "runs": ("RunFailed", "load", "resume", "train"),
    "search": ("Evaluation", "line_search"),
    "tabular": ("exact_problem",),
    "value_fitting": ("AdamFit", "GaussNewtonFit"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "tabular":
        return importlib.import_module("trpo.tabular")
    if name not in _HOME:
        raise AttributeError(f"module 'trpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trpo.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
