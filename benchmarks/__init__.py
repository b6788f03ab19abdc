"""Measurements beside the peers' and the physical limits; every figure is a ratio of one run."""
