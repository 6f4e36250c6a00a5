"""What each route needs: the one place where it is said.

A route that is not in the table stops the service at start.
"""

from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match
from starlette.types import Scope as AsgiScope

from service.access.callers import Scope

# Answered without a key: the probes, and what a browser needs to ask for one.
OPEN = None

NEEDED: dict[tuple[str, str], Scope | None] = {
    ("GET", "/livez"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/v2/health/live"): OPEN,
    ("GET", "/v2/health/ready"): OPEN,
    ("GET", "/"): OPEN,
    ("GET", "/page"): OPEN,
    ("GET", "/docs"): Scope.READ,
    ("GET", "/openapi.json"): Scope.READ,
    ("GET", "/metrics"): Scope.READ,
    ("GET", "/model"): Scope.READ,
    ("GET", "/fields"): Scope.READ,
    ("POST", "/classify"): Scope.READ,
    ("POST", "/similar"): Scope.READ,
    ("POST", "/embed"): Scope.READ,
    ("POST", "/risk"): Scope.READ,
    ("GET", "/lesions/{lesion_id:path}/similar"): Scope.READ,
    ("GET", "/lesions/{lesion_id:path}/thumbnail"): Scope.READ,
    ("GET", "/lesions"): Scope.READ,
    ("GET", "/lesions/{lesion_id:path}"): Scope.READ,
    ("POST", "/lesions"): Scope.WRITE,
    ("PATCH", "/lesions/{lesion_id:path}"): Scope.WRITE,
    ("DELETE", "/lesions/{lesion_id:path}"): Scope.WRITE,
    ("DELETE", "/patients/{patient_id:path}"): Scope.ADMIN,
}
# A path or method that no route has is told apart from one that is there to callers only.
UNMATCHED = Scope.READ


@dataclass(frozen=True)
class Declared:
    """One route, one of its methods, and what that needs."""

    route: BaseRoute
    method: str
    path: str
    needed: Scope | None


class RouteTable:
    """The app's routes with what each needs, found in the order in which the app finds them."""

    def __init__(self, app: FastAPI) -> None:
        """Read the app's routes.

        Raises:
            RuntimeError: a route is not declared in `NEEDED`.
        """
        self.declared = tuple(
            Declared(context.original_route, method, str(context.path), _needed(method, context))
            for context in iter_route_contexts(app.routes)
            for method in sorted((context.methods or {"GET"}) - {"HEAD"})
        )

    def find(self, scope: AsgiScope) -> Declared | None:
        """Return the route that will answer a request, None where none will."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        for declared in self.declared:
            if declared.method == method and declared.route.matches(scope)[0] is Match.FULL:
                return declared
        return None


def _needed(method: str, context: object) -> Scope | None:
    key = (method, str(getattr(context, "path", None)))
    if key not in NEEDED:
        raise RuntimeError(
            f"{' '.join(key)} declares no scope: add it to NEEDED in service/access/routes.py"
        )
    return NEEDED[key]
