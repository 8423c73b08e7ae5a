"""The ten claims, one module each, in the order of the argument.

A module has ``TITLE``, ``EXPLANATION`` (paragraphs; lines indented by four spaces are formulas), ``CODE`` (what
implements it, ``module:qualified name``), ``TESTS`` and ``run(size, figures)``.
"""
