"""What cannot be, at the command line: one clear line, exit code 2, and nothing is lost or left."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import trpo
from trpo.cli.main import main

TRAIN = ["train", "probe:both", "--steps", "64", "--fragment", "8", "--env.count", "4", "--out", "new", "--quiet"]
FILES = {
    "open.toml": b"steps = [1\n",
    "name.toml": b"stepz = 1\n",
    "type.toml": b"[rule]\nmax-kl = 'x'\n",
    "group.toml": b"rule = 3\n",
    "negative.toml": b"[evaluate]\nevery = -1\n",
    "bytes.toml": b"\xff\xfe\x00",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run, files and directories of settings."""
    found = tmp_path_factory.mktemp("bad")
    evaluated = trpo.EvaluateConfig(every=32, episodes=1)
    config = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig("probe:both", count=4), evaluate=evaluated)
    trpo.train("probe:both", config=config, out=found / "run", quiet=True)
    for name, content in FILES.items():
        (found / name).write_bytes(content)
    for name in ("a.html", "a.npz", "a.png"):
        (found / name).mkdir()
    return found


def contents(place: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in place.rglob("*") if path.is_file()}


def refused(place: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = contents(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(arguments) == 2
    assert contents(place) == before
    assert not (place / "new").exists()
    assert not list(place.rglob(".tmp-*"))
    said, line = capsys.readouterr()
    assert said == ""
    assert line.startswith("trpo: ")
    assert line.count("\n") == 1, line
    return line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--evaluate.every -1", "evaluate.every=-1: must be ≥ 0"),
        ("--evaluate.every 1.5", "'1.5' is not a whole number"),
        ("--evaluate.every", "Missing value for argument '--evaluate.every'"),
        ("--evaluate.evry 3", "unknown flag --evaluate.evry; did you mean --evaluate.every?"),
        ("--evaluate.every 32 --evaluate.patience x", "--evaluate.patience: 'x' is not a whole number, nor None"),
        ("--evaluate.every 32 --evaluate.stop-return nan", "evaluate.stop_return=nan: must be finite"),
        ("--evaluate.every 32 --evaluate.stop-return x", "--evaluate.stop-return: 'x' is not a number, nor None"),
        ("--evaluate.stop-return 5", "evaluate.stop_return=5.0: must be None where nothing is evaluated; add evaluate"),
        ("--evaluate.every 32 --evaluate.seed -1", "evaluate.seed=-1: must be between 0 and 2³² − 1"),
        ("--evaluate.every 32 --evaluate.episodes 1000000000000", "evaluate.episodes=1000000000000: their returns"),
        ("--video.every x", "'x' is not a whole number"),
        ("--video.every 32", "video.every=32: environment 'probe:both' offers no images"),
        ("--log.csv maybe", "Unrecognized options: maybe"),
        ("--log.wandb", "Missing value for argument '--log.wandb'"),
        ("--config missing.toml", "missing.toml: No such file or directory"),
        ("--config open.toml", "open.toml: Unclosed array"),
        ("--config name.toml", "name.toml: unknown setting stepz; did you mean steps?"),
        ("--config type.toml", "type.toml: rule.max_kl='x': must be of type float"),
        ("--config group.toml", "group.toml: rule=3: must be a group of settings"),
        ("--config negative.toml", "negative.toml: evaluate.every=-1: must be ≥ 0"),
        ("--config bytes.toml", "bytes.toml: 'utf-8' codec"),
        ("--config run", "run: Is a directory"),
        ("--env.wrappers Twice", "env.wrappers=('Twice',): must be names of the form module:Class"),
        ("--env.wrappers no_such:Thing", "env.wrappers no_such:Thing cannot be imported"),
        ("--env.wrappers math:pi", "env.wrappers math:pi is float, not a class of wrappers"),
        ("--from missing", "missing is not the directory of a run"),
        ("--from name.toml", "name.toml is not the directory of a run"),
        ("--from run --checkpoint 99", "checkpoint='99': must be last, best or an iteration that run has: "),
        ("--from run --policy.hidden 3", "policy.hidden=(3,): run has (64, 64), and its networks are taken as they"),
        ("--checkpoint best", "checkpoint='best': it is that of start_from (--from RUN), which is not given"),
        ("--out /proc/no/such", "/proc/no"),
        ("--out name.toml/new", "name.toml"),
    ],
)
def test_train(flags: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(place, [*TRAIN, *flags.split()], capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("resume run --rule.max-kl nan", "max_kl=nan: must be in (0, ∞)"),
        ("resume run --rule.max-kl x", "--rule.max-kl: could not convert string to float: 'x'"),
        ("resume run --rule.max_klx 1", "unknown flag --rule.max_klx; did you mean --rule.max-kl?"),
        ("resume run --steps 0", "steps=0: must be ≥ 1"),
        ("resume run --env.id Hopper-v5", "unknown flag --env.id"),
        ("resume run --evaluate.stop-success 0.5", "must be None where env.info names no key"),
        ("resume missing --steps 99", "missing is not the directory of a run"),
        ("evaluate run --checkpoint x", "checkpoint='x': must be last, best or an iteration that run has"),
        ("evaluate run --checkpoint best --episodes 0", "episodes=0: must be ≥ 1"),
        ("evaluate run --seed -1", "seed=-1: must be ≥ 0"),
        ("check probe:both --steps 0", "steps=0: must be ≥ 1"),
        ("check probe:both --seed -1", "seed=-1: must be ≥ 0"),
        ("check Nope-v0", "unknown environment 'Nope-v0'"),
        ("check probe:both --rule.max-kl 1", "unknown flag --rule.max-kl"),
        ("report", "report needs at least one run"),
        ("report run missing", "missing is not the directory of a run"),
        ("report run --out a.txt", "out='a.txt': must end in .html"),
        ("report run --out a.html", "a.html: Is a directory"),
        ("report run --out /proc/a.html", "/proc/.tmp-a.html: No such file"),
        ("plot run --out a.png", "a.png: Is a directory"),
        ("watch run --episodes -1", "episodes=-1: must be ≥ 0"),
        ("watch run --seed -1 --episodes 1", "seed=-1: must be ≥ 0"),
        ("watch run --checkpoint 99 --episodes 1", "checkpoint='99': must be"),
        ("watch missing", "missing is not the directory of a run"),
        ("record run --seed -1 --out a.gif", "seed=-1: must be ≥ 0"),
        ("export run --to policy.txt", "to='policy.txt': must end in .npz or .onnx"),
        ("export run --to a.npz", "a.npz is there already"),
        ("export run --to a.npz --overwrite", "a.npz: Is a directory"),
        ("export run --to name.toml/policy.npz", "name.toml: is there, and is no directory"),
        ("export run --checkpoint 99", "checkpoint='99': must be"),
    ],
)
def test_other_commands(line: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(place, line.split(), capsys)


def test_a_file_where_a_directory_is_to_be(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    shutil.rmtree(run / "best")
    (run / "best").write_text("x")
    assert main(["resume", str(run), "--steps", "96", "--quiet"]) == 2
    assert capsys.readouterr().err == f"trpo: {run / 'best'}: is there, and is no directory\n"
    assert contents(run / "checkpoints") == {
        path.replace(str(place), str(tmp_path)): found
        for path, found in contents(place / "run" / "checkpoints").items()
    }


@pytest.mark.parametrize("kind", [trpo.EvaluateEvery, trpo.FilmEvery])
def test_callbacks_are_checked_as_the_settings_are(kind: type) -> None:
    assert kind(every=1e3).every == 1000
    for wrong in ({"every": 0}, {"every": "x"}, {"every": 1, "episodes": 0}, {"every": 1, "max_steps": 1.5}):
        with pytest.raises(ValueError, match=f"{list(wrong)[-1]}="):
            kind(**wrong)
