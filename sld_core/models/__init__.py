"""Networks that a robot may run; how they are trained is in sld_core.training."""
