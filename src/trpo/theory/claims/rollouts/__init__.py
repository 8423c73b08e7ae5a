"""Single paths and vines: what branches estimate, with which error, and what common random numbers are worth."""
