"""A caller and what it may do."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do; each scope contains those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: "Scope") -> bool:
        """Say whether the needed scope is this one or one that it contains."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller:
    """Whose request it is.

    Attributes:
        name: `key:ID`, `oidc:SUBJECT` or `anyone`; holds no secret, so it may be logged.
        scope: None where a valid token maps to none.
    """

    name: str
    scope: Scope | None


# The caller of a service that needs no keys.
ANYONE = Caller("anyone", Scope.ADMIN)
