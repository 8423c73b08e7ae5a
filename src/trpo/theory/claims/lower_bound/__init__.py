"""L_π(π̃) minus a penalty never exceeds η(π̃): on random pairs, and on pairs that an optimiser picks against it."""
