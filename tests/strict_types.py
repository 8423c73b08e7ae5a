"""The type checker that the tests put on every annotated function of the package."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float, as PEP 484 has it
