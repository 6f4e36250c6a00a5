"""What the OpenAPI document says of access, made from the table of routes."""

from typing import Any

from service.access.routes import OPEN, RouteTable
from service.problems import problems

SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key, or a token of the site's identity provider",
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
}


def document_access(document: dict[str, Any], table: RouteTable) -> None:
    """Add to each operation which scope it needs and how it is refused."""
    document["components"]["securitySchemes"] = SCHEMES
    for declared in table.declared:
        path = document["paths"].get(getattr(declared.route, "path_format", declared.path), {})
        operation = path.get(declared.method.lower())
        if operation is None or declared.needed is OPEN:
            continue
        operation["security"] = [{name: [declared.needed.value]} for name in SCHEMES]
        for status, answer in problems(401, 403, 429).items():
            operation["responses"].setdefault(str(status), answer)
