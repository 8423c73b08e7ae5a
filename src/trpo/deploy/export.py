"""Taking a policy away: one file that acts without JAX."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from trpo.deploy import policy as template
from trpo.deploy.description import Description, describe
from trpo.deploy.onnx import onnx_bytes, require_onnx
from trpo.runs.disk import replace_durably
from trpo.runs.train import load
from trpo.training.agent import Agent

ENDINGS = ".npz", ".onnx"
CODE = "policy.py"
"""The module beside an .npz that acts by it."""


def export(run: Agent | str | Path, to: str | Path, *, checkpoint: str | int = "last", overwrite: bool = False) -> Path:
    """Write a policy with its statistics and the conversion of its actions, to act without JAX; return the file.

    ``.npz`` needs NumPy alone: beside it ``policy.py`` is written, whose ``Policy(file)`` does what
    :meth:`trpo.Agent.act` does. ``.onnx`` (with the extra ``onnx``) is a graph of the distribution's mode: it takes a
    batch of each part of an observation that is seen, and of a memory ``carry/…``, and gives a batch of each part of an
    action, and ``next_carry/…``.

    Args:
        run: an agent, or a run's directory.
        to: a file that ends in ``.npz`` or ``.onnx``.
        checkpoint: of a run's directory, as for :func:`trpo.load`.
        overwrite: replace files that are there.

    Raises:
        ValueError: another ending, a file that is there, or a policy that has parts of your own.

    >>> import tempfile, trpo
    >>> agent = trpo.make_agent("probe:action")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trpo.export(agent, f"{folder}/policy.npz").name
    'policy.npz'
    """
    file = Path(to)
    if file.suffix.lower() not in ENDINGS:
        raise ValueError(f"to={str(to)!r}: must end in {' or '.join(ENDINGS)}")
    if file.suffix.lower() == ".onnx":
        require_onnx()
    description = describe(run if isinstance(run, Agent) else load(run, checkpoint=checkpoint))
    if file.suffix.lower() == ".onnx":
        content = {file: onnx_bytes(description)}
    else:
        content = {file: npz(description)}
        code, beside = Path(template.__file__).read_bytes(), file.with_name(CODE)
        if not (beside.is_file() and beside.read_bytes() == code):
            content[beside] = code
    for path in content:
        if not overwrite and path.exists():
            raise ValueError(f"{path} is there already: choose another place, or replace it by overwrite (--overwrite)")
    for path, data in content.items():
        replace_durably(path, data)
    return file


def npz(description: Description) -> bytes:
    """Return a file for NumPy: arrays by name, and as one of them the description as JSON. Nothing in it is pickled."""
    about, written = np.array(json.dumps(description.about, allow_nan=False)), io.BytesIO()
    np.savez(written, **{"description": about, **description.arrays})
    return written.getvalue()
