"""The `slimp` command: one file a verb, no logic of its own.

Rooms are imported when a verb runs, so that `slimp --help` is quick.
"""
