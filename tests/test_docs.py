"""What the documentation says is true: examples run, names are explained, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import trpo

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NEEDS_EXTRA: dict[str, str] = {}
"""Modules that cannot be imported without an extra, and the package that they need."""
WITHOUT_DOCSTRING = {"__version__"}
WRITTEN_LATER = {"results.md"}
"""Pages that are generated from result files, and may be absent until there are some."""


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(trpo.__path__, "trpo.")]
    assert len(found) > 20
    return ["trpo", *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_in_pages(page: Path) -> None:
    # Fences end an example's expected output, which doctest would otherwise take them for.
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, page_id(page), str(page), 0)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
    assert not result.failed, "".join(output)


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str) -> None:
    if name in NEEDS_EXTRA:
        pytest.importorskip(NEEDS_EXTRA[name])
    module = importlib.import_module(name)
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)
    has_examples = re.search(r"^ *>>> ", Path(str(module.__file__)).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not has_examples or runner.tries


@pytest.mark.parametrize("name", trpo.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert re.search(rf"`(trpo\.)?{re.escape(name)}\b", reference), f"docs/reference.md does not mention `{name}`"
    if name not in WITHOUT_DOCSTRING:
        docstring = inspect.getdoc(getattr(trpo, name))
        assert docstring
        assert not docstring.startswith(f"{name}("), f"{name} has only the docstring that dataclasses generate"


def test_the_reference_names_nothing_that_does_not_exist() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `([A-Za-z_]+)", reference, flags=re.MULTILINE)
    assert len(names) > 30
    assert not [name for name in names if not hasattr(trpo, name)]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        if linked.name in WRITTEN_LATER and not linked.exists():
            continue
        assert linked.exists(), f"{page_id(page)} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(linked), f"{page_id(page)} links to {target}: no such heading"


def test_every_page_is_in_the_map() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).as_posix() for page in docs.glob("**/*.md")]
    missing = [page for page in pages if page != "index.md" and f"({page})" not in index]
    assert not missing


def test_tests_that_the_implementation_details_name_exist() -> None:
    text = (ROOT / "docs" / "implementation-details.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) >= 24
    absent = []
    for file, function in named:
        path = ROOT / "tests" / f"{file}.py"
        if not path.exists() or not re.search(rf"def {function}\b", path.read_text(encoding="utf-8")):
            absent.append(f"{file}.py::{function}")
    assert not absent


def test_every_metric_is_defined() -> None:
    config = trpo.Config(steps=1, fragment=2, env=trpo.EnvConfig("probe:action", count=1))
    _, metrics = next(trpo.iterations("probe:action", trpo.make_agent("probe:action", config), config))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in metrics if f"| `{name}` |" not in page]
    assert not [result.name for result in trpo.Result if f"| `{result.name.lower()}` |" not in page]
