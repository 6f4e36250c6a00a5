"""Whether a caller needs a key, decided once at start.

Only a service that nobody but this machine reaches may go without.
"""

import ipaddress
from enum import StrEnum

from starlette.requests import Request

from bundle.errors import InvalidSettings
from service.errors import ForeignOrigin, MisdirectedRequest
from service.settings import Settings


class Mode(StrEnum):
    """Why keys are needed, or why not."""

    LOOPBACK = "loopback"
    OFF = "off"
    REQUIRED = "required"


OFF_BANNER = (
    "access control is off (SLIMP_AUTH=off): whoever reaches this service may ask it anything"
)


def choose_mode(settings: Settings) -> Mode:
    """Return what the settings ask for.

    Raises:
        InvalidSettings: they would open the service to other machines without keys.
    """
    published = settings.host if settings.publish is None else settings.publish
    if settings.auth == "off":
        if settings.publish is not None and not is_loopback(settings.publish):
            raise InvalidSettings(
                "SLIMP_AUTH=off: expected a service published to this machine only, got "
                f"SLIMP_PUBLISH={settings.publish}: set SLIMP_AUTH=on and make a key with "
                "slimp keys create, or publish on 127.0.0.1"
            )
        return Mode.OFF
    # Behind a proxy everybody comes from this machine.
    is_local = not settings.trusted_proxies and is_loopback(settings.host)
    if settings.auth == "auto" and is_local and is_loopback(published):
        return Mode.LOOPBACK
    return Mode.REQUIRED


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own, reached from itself."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_local(request: Request) -> None:
    """Refuse what a web page of another site may send through a browser of this machine.

    A page whose name was made to point at 127.0.0.1 (DNS rebinding) sends that name as Host; any
    other page that posts a form sends its own address as Origin.

    Raises:
        MisdirectedRequest: the Host is no loopback name.
        ForeignOrigin: another site's page asks.
    """
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if not is_loopback(name):
        raise MisdirectedRequest(
            "without keys this service answers to localhost and loopback addresses only: ask it "
            "by one of those, or set it up with keys (docs/security.md)"
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise ForeignOrigin("this service answers no page of another site")
