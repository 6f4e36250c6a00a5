"""One file an objective, all on the same small towers: see docs/experiments.md."""
