"""The OpenAPI document: `python -m service.openapi` prints it; a test compares the snapshot."""

import json
import sys

from service.app import create_app
from service.settings import Settings


def openapi_text() -> str:
    """Return the document as it is committed: sorted, two spaces, the version left out."""
    document = create_app(Settings()).openapi()
    document["info"]["version"] = "-"
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(openapi_text())
