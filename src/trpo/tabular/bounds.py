"""Lower bounds on η(π̃) around π, constants included (imports nothing that they judge).

    ε      = max_{s,a} |A_π(s, a)|
    ε_π̃    = max_s |Σ_a π̃(a|s) A_π(s, a)|

| bound on L_π(π̃) − η(π̃) | function | source |
|---|---|---|
| 4εγ/(1−γ)² · max_s TV² | `theorem_1` | TRPO, Theorem 1 (eq. 8) |
| 4εγ/(1−γ)² · max_s KL | `theorem_1_kl` | TRPO, eq. 9, by TV² ≤ KL |
| 2εγ/(1−γ)² · max_s KL | `pinsker` | the same by Pinsker's sharper TV² ≤ KL/2: half the paper's constant |
| 2ε_π̃γ/(1−γ)² · Σ_s d_π(s) TV | `average_tv` | Achiam et al. 2017 (arXiv:1705.10528), corollary 1 |
| 2ε_π̃γ/(1−γ)² · √(½ Σ_s d_π(s) KL) | `average_kl` | the same, corollary 3 |

TV and KL are between π(·|s) and π̃(·|s), KL(π ‖ π̃) as in the paper; d_π = (1 − γ)ρ_π. The first versions of the
TRPO paper had 2ε_π̃γ/(1−γ)² · max_s TV² in Theorem 1. For mixtures (1 − α)π + απ' it holds with the ε of π', the policy
that is mixed in, and α in place of TV (Kakade and Langford 2002), but not with that of π̃ for any two policies:
`icml_version`, here as a control that a search must refute.
"""

from __future__ import annotations

from trpo.tabular.exact import (
    Number,
    Policy,
    advantage,
    expected_advantage,
    kl,
    state_weight,
    surrogate,
    total_variation,
)
from trpo.tabular.mdp import MDP
from trpo.trees import namespace


def _horizon(mdp: MDP) -> Number:
    """γ/(1 − γ)²."""
    return mdp.discount / (1 - mdp.discount) ** 2


def epsilon(mdp: MDP, old: Policy) -> Number:
    """ε = max_{s,a} |A_π(s, a)|."""
    xp = namespace(old)
    return xp.max(xp.abs(advantage(mdp, old)), axis=(-2, -1))


def epsilon_new(mdp: MDP, old: Policy, new: Policy) -> Number:
    """ε_π̃ = max_s |Σ_a π̃(a|s) A_π(s, a)| ≤ 2ε max_s TV: small when the policies are close."""
    xp = namespace(old)
    return xp.max(xp.abs(expected_advantage(advantage(mdp, old), new)), axis=-1)


def penalty_coefficient(mdp: MDP, old: Policy) -> Number:
    """C = 4εγ/(1 − γ)², the paper's constant for max_s TV² and for max_s KL alike (eq. 9)."""
    return 4 * epsilon(mdp, old) * _horizon(mdp)


def theorem_1(mdp: MDP, old: Policy, new: Policy) -> Number:
    """4εγ/(1−γ)² · max_s TV²  (eq. 8)."""
    tv = total_variation(old, new)
    return penalty_coefficient(mdp, old) * namespace(tv).max(tv**2, axis=-1)


def theorem_1_kl(mdp: MDP, old: Policy, new: Policy) -> Number:
    """4εγ/(1−γ)² · max_s KL(π ‖ π̃)  (eq. 9)."""
    divergence = kl(old, new)
    return penalty_coefficient(mdp, old) * namespace(divergence).max(divergence, axis=-1)


def pinsker(mdp: MDP, old: Policy, new: Policy) -> Number:
    """2εγ/(1−γ)² · max_s KL(π ‖ π̃): half of eq. 9, since TV² ≤ KL/2."""
    return theorem_1_kl(mdp, old, new) / 2


def average_tv(mdp: MDP, old: Policy, new: Policy) -> Number:
    """2ε_π̃γ/(1−γ)² · Σ_s d_π(s) TV  (Achiam et al. 2017, corollary 1)."""
    tv = total_variation(old, new)
    mean = namespace(tv).sum(state_weight(mdp, old) * tv, axis=-1)
    return 2 * epsilon_new(mdp, old, new) * _horizon(mdp) * mean


def average_kl(mdp: MDP, old: Policy, new: Policy) -> Number:
    """2ε_π̃γ/(1−γ)² · √(½ Σ_s d_π(s) KL(π ‖ π̃))  (Achiam et al. 2017, corollary 3)."""
    xp = namespace(old)
    mean = xp.sum(state_weight(mdp, old) * kl(old, new), axis=-1)
    return 2 * epsilon_new(mdp, old, new) * _horizon(mdp) * xp.sqrt(0.5 * mean)


def icml_version(mdp: MDP, old: Policy, new: Policy) -> Number:
    """2ε_π̃γ/(1−γ)² · max_s TV²: *not* a bound for arbitrary policies; a control for searches."""
    tv = total_variation(old, new)
    return 2 * epsilon_new(mdp, old, new) * _horizon(mdp) * namespace(tv).max(tv**2, axis=-1)


BOUNDS = {bound.__name__: bound for bound in (theorem_1, theorem_1_kl, pinsker, average_tv, average_kl)}
"""Every valid bound by name: (mdp, old, new) ↦ what L_π(π̃) − η(π̃) cannot exceed."""


def lower_bound(mdp: MDP, old: Policy, new: Policy) -> Number:
    """M(π̃) = L_π(π̃) − 4εγ/(1−γ)² · max_s KL(π ‖ π̃) ≤ η(π̃): what minorization-maximization climbs (eq. 10)."""
    return surrogate(mdp, old, new) - theorem_1_kl(mdp, old, new)
