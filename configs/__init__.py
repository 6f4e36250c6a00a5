"""Experiments as TOML files; `training/config.py` declares every key."""
