"""What a run's metrics say of its health, and what to try: every advice is one of the documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from trpo.report.plots import column
from trpo.rules.protocol import Result

UPDATE, NETWORKS = "metrics.md, The update", "metrics.md, The policy and the value function"
FEW = 12
"""Iterations that are listed by number."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that metrics say."""

    name: str
    text: str
    advice: str = ""
    """What to try; empty where all is well."""
    source: str = ""
    """Which document says so."""


def diagnose(records: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]] = ()) -> list[Finding]:
    """Return what the metrics of a run say, one finding for each aspect of which there are numbers."""
    if not records:
        return []
    looked = (_updates, _refused, _nonfinite, _kl, _gain, _state_kl, _residual, _explained, _std, _entropy, _speed)
    found = [finding for look in looked if (finding := look(records)) is not None]
    if cut := sum(count for record in evaluations if type(count := record.get("cut")) is int):
        text = f"{cut} evaluated episodes had not ended after {evaluations[-1].get('max_steps')} steps"
        advice = "their returns are those until then; --evaluate.max-steps lets them go on"
        found.append(Finding("Episodes that were cut", text, advice, "metrics.md, Evaluations"))
    return found


def refusals(records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Return in which iterations nothing was updated, by why."""
    found: dict[str, list[int]] = {}
    for record in records:
        if (result := str(record.get("result", "accepted"))) != "accepted":
            found.setdefault(result, []).append(int(record.get("iteration", 0)))
    return found


def _median(records: Sequence[dict[str, Any]], name: str) -> float | None:
    known = column(records, name)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else None


def _accepted(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record.get("result", "accepted") == "accepted"]


def _updates(records: Sequence[dict[str, Any]]) -> Finding:
    count = len(_accepted(records))
    return Finding("Updates", f"{count:,} of {len(records):,} iterations moved the policy")


def _listed(iterations: Sequence[int]) -> str:
    more = f" and {len(iterations) - FEW} more" if len(iterations) > FEW else ""
    return f"iteration{'s' * (len(iterations) > 1)} {', '.join(map(str, iterations[:FEW]))}{more}"


def _refused(records: Sequence[dict[str, Any]]) -> Finding | None:
    found = refusals(records)
    found.pop(Result.NONFINITE_BATCH.name.lower(), None)
    if not found:
        return None
    said = [f"{result} in {_listed(iterations)}" for result, iterations in found.items()]
    known = {result.name.lower(): result.reason for result in Result}
    advice = " ".join(f"{known[result]}." for result in found if result in known)
    return Finding("Updates that were refused", "; ".join(said), advice, "metrics.md, result")


def _nonfinite(records: Sequence[dict[str, Any]]) -> Finding | None:
    result = Result.NONFINITE_BATCH
    found = refusals(records).get(result.name.lower())
    if not found:
        return None
    return Finding("Batches that were not finite", _listed(found), f"{result.reason}.", "faq.md, I see NaN.")


def _kl(records: Sequence[dict[str, Any]]) -> Finding | None:
    accepted = _accepted(records)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = column(accepted, "mean_kl") / column(accepted, "max_kl")
    share = share[np.isfinite(share)]
    if not len(share):
        return None
    text = f"the mean KL was {np.median(share):.0%} of δ (median), at most {share.max():.1%}"
    if np.median(share) >= 0.5:
        return Finding("KL against δ", text)
    advice = "far below δ: look at backtracks, the surrogate may be what stopped the search"
    return Finding("KL against δ", text, advice, "faq.md, Why is the mean KL below δ")


def _gain(records: Sequence[dict[str, Any]]) -> Finding | None:
    accepted = _accepted(records)
    actual, predicted = (_median(accepted, name) for name in ("surrogate_gain", "predicted_gain"))
    if actual is None or not predicted:
        return None
    text = f"actual over predicted gain: {actual / predicted:.2f} (medians)"
    if actual >= 0.5 * predicted:
        return Finding("Surrogate gain", text)
    return Finding(
        "Surrogate gain", text, "δ is too large for this batch: lower rule.max_kl, or take a larger batch", UPDATE
    )


def _state_kl(records: Sequence[dict[str, Any]]) -> Finding | None:
    most, mean = (_median(_accepted(records), name) for name in ("max_state_kl", "mean_kl"))
    if most is None or not mean:
        return None
    text = f"the largest KL of one state was {most / mean:.0f} times the mean (medians)"
    advice = (
        "a few states take most of the step: lower rule.max_kl, or take a larger batch" if most > 300 * mean else ""
    )
    return Finding("KL of single states", text, advice, UPDATE if advice else "")


def _residual(records: Sequence[dict[str, Any]]) -> Finding | None:
    found, count = _median(records, "cg_residual"), _median(records, "cg_iterations")
    if found is None or not count:
        return None
    return Finding("Conjugate gradient", f"relative residual {found:.2g} after {count:.0f} products (medians)")


def _explained(records: Sequence[dict[str, Any]]) -> Finding | None:
    found = _median(records[-max(1, len(records) // 4) :], "explained_variance")
    if found is None:
        return None
    text = f"{found:.2f} in the last quarter (median)"
    if found >= 0.3:
        return Finding("Explained variance", text)
    worse = "worse than a constant; " if found < 0 else ""
    advice = f"{worse}more epochs (value.epochs) are the first thing to try when it stays low"
    return Finding("Explained variance", text, advice, "how-to-choose.md, The value function")


def _std(records: Sequence[dict[str, Any]]) -> Finding | None:
    known = column(records, "std")
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    text = f"σ went from {known[0]:.3g} to {known[-1]:.3g}"
    if known[-1] >= 0.1:
        return Finding("Noise of the policy", text)
    advice = "a policy without noise forgets every state that it no longer meets: policy.min_std sets a bound"
    return Finding("Noise of the policy", text, advice, "how-to-choose.md, Exploration")


def _entropy(records: Sequence[dict[str, Any]]) -> Finding | None:
    known = column(records, "entropy")
    known = known[np.isfinite(known)]
    return Finding("Entropy", f"from {known[0]:.3g} to {known[-1]:.3g} nats") if len(known) else None


def _speed(records: Sequence[dict[str, Any]]) -> Finding | None:
    speed, seconds = _median(records, "steps_per_second"), column(records, "seconds")
    if speed is None:
        return None
    collecting = np.nansum(column(records, "collect_seconds"))
    spent = seconds[np.isfinite(seconds)]
    share = (
        f"; {collecting / spent[-1]:.0%} of the time was spent in stepping environments"
        if collecting and len(spent)
        else ""
    )
    return Finding("Speed", f"{speed:,.0f} steps a second (median){share}")
