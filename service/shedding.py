"""Turns away what would find no place, when its head is read and before anything else is done.

Whoever is turned away is neither heard nor told anything, so that no key, route or body is looked
at and nothing is audited: a flood takes from the requests that are inside as little as may be.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from bundle.errors import LesionError, Overloaded
from service.access.routes import RouteTable
from service.middleware import RequestContext
from service.problems import early_problem
from service.state import Service
from service.tickets import lane_of
from service.unread import UnreadBodies

# Where the lifespan's state, and so each connection, has the app's turnstile.
TURNSTILE = "turnstile"


class Turnstile:
    """Stands before the app, one for all connections."""

    def __init__(self, service: Service, table: RouteTable) -> None:
        self._service = service
        # Metrics and the log name the route; one with an id in its path takes no upload.
        self._routes = {each.path: each.route for each in table.declared if each.method == "POST"}
        self._app = UnreadBodies(RequestContext(self._answer, service))

    def refuse(self, scope: Scope) -> ASGIApp | None:
        """Return what answers a request that finds no place, None where one is free."""
        if scope["method"] != "POST":
            return None
        priority = next((v for name, v in scope["headers"] if name == b"priority"), b"")
        try:
            self._service.scheduler.check_room(lane_of(priority.decode("latin-1")))
        except Overloaded as error:
            scope["route"] = self._routes.get(scope["path"])
            scope["state"]["refusal"] = error
            return self._app
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: LesionError = scope["state"]["refusal"]
        await early_problem(self._service, scope, error)(scope, receive, send)
