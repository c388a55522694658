"""Networks that a robot may run; no recipes."""
