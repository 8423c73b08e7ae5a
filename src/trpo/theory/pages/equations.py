"""The paper's equations: what computes each, and what checks it."""

from __future__ import annotations

from trpo.theory.pages.text import Equation

EQUATIONS = (
    Equation(
        "1, 2",
        "η(π̃) = η(π) + Σ_s ρ_π̃(s) Σ_a π̃(a|s) A_π(s,a)",
        ("trpo.tabular.exact:performance_difference",),
        ("test_tabular.py::test_performance_difference_is_the_difference_of_returns",),
        "performance_difference",
    ),
    Equation(
        "3",
        "L_π(π̃) = η(π) + Σ_s ρ_π(s) Σ_a π̃(a|s) A_π(s,a)",
        ("trpo.tabular.exact:surrogate", "trpo.tabular.bridge:exact_problem"),
        ("test_tabular.py::test_exact_problem_is_the_surrogate_in_units_of_one_minus_discount",),
        "surrogate",
    ),
    Equation(
        "4",
        "L_π(π) = η(π),  ∇L_π(π_θ) = ∇η(π_θ) at θ_old",
        ("trpo.problem:LocalProblem.linearise", "trpo.tabular.exact:policy_gradient"),
        ("test_tabular.py::test_gradient_of_the_exact_problem_is_the_policy_gradient",),
        "surrogate",
    ),
    Equation(
        "5, 6",
        "mixtures π_new = (1 − α)π + απ': η ≥ L − 2εγ/(1−γ)² α²",
        ("trpo.tabular.bounds:icml_version",),
        ("test_tabular.py::test_mixture_bound_holds_for_mixtures_only",),
        "lower_bound",
    ),
    Equation(
        "7",
        "D_TV^max(π, π̃) = max_s ½ Σ_a |π(a|s) − π̃(a|s)|",
        ("trpo.tabular.exact:total_variation",),
        ("test_tabular.py::test_divergences_are_their_definitions",),
        "lower_bound",
    ),
    Equation(
        "8",
        "η(π̃) ≥ L_π(π̃) − 4εγ/(1−γ)² · (max_s TV)²,  ε = max |A_π|",
        ("trpo.tabular.bounds:theorem_1",),
        ("test_tabular.py::test_bounds_hold_and_their_order_is_known",),
        "lower_bound",
    ),
    Equation(
        "9",
        "η(π̃) ≥ L_π(π̃) − C · max_s KL(π ‖ π̃),  C = 4εγ/(1−γ)²",
        ("trpo.tabular.bounds:theorem_1_kl", "trpo.tabular.bounds:penalty_coefficient", "trpo.objectives:max_state_kl"),
        ("test_tabular.py::test_bounds_hold_and_their_order_is_known",),
        "lower_bound",
    ),
    Equation(
        "10, algorithm 1",
        "π_{i+1} = argmax M_i,  η(π_{i+1}) − η(π_i) ≥ M_i(π_{i+1}) − M_i(π_i) ≥ 0",
        ("trpo.rules.mm:MM", "trpo.tabular.bounds:lower_bound"),
        ("test_mm.py::test_it_never_decreases_the_return",),
        "minorization",
    ),
    Equation(
        "11",
        "maximise L(θ) subject to max_s KL ≤ δ",
        ("trpo.objectives:max_state_kl",),
        ("test_problem.py::test_a_problem_is_its_definition_at_the_sampling_policy_and_elsewhere",),
        "mean_kl",
    ),
    Equation(
        "12",
        "D̄(θ) = Σ_s d_π(s) KL(π_old(·|s) ‖ π_θ(·|s)) ≤ δ",
        ("trpo.objectives:mean_kl", "trpo.tabular.exact:kl"),
        ("test_tabular.py::test_exact_problem_is_the_surrogate_in_units_of_one_minus_discount",),
        "mean_kl",
    ),
    Equation(
        "13, 14",
        "maximise E[π_θ(a|s)/π_old(a|s) · Â(s,a)] subject to E_s[KL(π_old ‖ π_θ)] ≤ δ",
        ("trpo.objectives:importance_sampled_surrogate", "trpo.problem:sampled_problem"),
        ("test_problem.py::test_a_problem_is_its_definition_at_the_sampling_policy_and_elsewhere",),
        "importance_sampling",
    ),
    Equation(
        "17",
        "natural gradient: maximise gᵀΔ subject to ½ΔᵀFΔ ≤ δ",
        ("trpo.rules.natural_gradient:NaturalGradient.update",),
        ("test_rules.py::test_the_undamped_full_solve_is_the_dense_kkt_solution",),
        "solving",
    ),
    Equation(
        "18",
        "plain gradient: maximise gᵀΔ subject to ½‖Δ‖² ≤ δ",
        ("trpo.problem:LocalProblem.linearise",),
        ("test_claim_parameter_ball.py::test_the_claim_holds",),
        "parameter_ball",
    ),
    Equation(
        "C",
        "s ≈ F⁻¹g by conjugate gradient, β = √(2δ / sᵀFs), then shrink until L improves and D̄ ≤ δ",
        (
            "trpo.conjugate_gradient:conjugate_gradient",
            "trpo.rules.step:step_length",
            "trpo.line_search:line_search",
            "trpo.rules.trpo:TRPO.update",
        ),
        ("test_rules.py::test_the_full_step_has_the_kl_it_was_given_whatever_the_damping",),
        "solving",
    ),
    Equation(
        "C.1",
        "F v = Σ_s w_s J_sᵀ M_s J_s v,  F = E[∇log π ∇log πᵀ] = ∇²D̄(θ_old)",
        ("trpo.fisher:fisher_vp", "trpo.tabular.exact:fisher"),
        ("test_fisher.py::test_product_is_the_dense_hessian_of_the_mean_kl",),
        "fisher",
    ),
)
"""In the paper's order."""
