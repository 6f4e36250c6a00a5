"""How long work tells its caller where it stands."""

from collections.abc import Callable

# Stage, done, total.
StageReport = Callable[[str, int, int], None]
# Step, total, the step's metrics.
StepReport = Callable[[int, int, dict[str, float]], None]


def silent(*_: object) -> None:
    """Report nothing."""
