"""The soak of ``benchmarks.soak``, for two minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

soak = pytest.importorskip("benchmarks.soak")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what a process holds from /proc")
def test_two_minutes_leave_nothing_behind(tmp_path: Path) -> None:
    soak.main(["--hours", str(2 / 60), "--out", str(tmp_path / "soak.json")])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert len(found["curve"]) >= 4
    assert found["seconds"] >= 120
    # Memory is still settling after so short a time; what is counted must be the same from the second round on.
    assert all(found["curve"][-1][name] <= found["curve"][1][name] for name in soak.STEADY), found["curve"]


def test_the_line_is_fitted_to_the_second_half() -> None:
    def curve(slope: float, files: int = 0) -> list[dict[str, float]]:
        steady = {"threads": 9, "shared": 0, "children": 0}
        start = [500.0, 700.0, 790.0, 800.0]
        memory = start + [800 + slope * i for i in range(1, 9)]
        rows = [{"round": i, "seconds": 36.0 * i, "memory": m, "files": 15} | steady for i, m in enumerate(memory)]
        rows[-1]["files"] += files
        return rows

    rising = soak.fitted(curve(4.0))
    assert rising["mib_per_new_environment"] == pytest.approx(4.0 / soak.NEW)
    assert not rising["flat"]
    assert soak.fitted(curve(0.5))["flat"]
    assert not soak.fitted(curve(0.0, files=1))["flat"]
