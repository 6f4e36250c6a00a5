"""Options that several verbs take."""

from typing import Annotated

from typer import Option

Variant = Annotated[
    str | None,
    Option(
        envvar="SLIMP_VARIANT",
        help="precision of the image encoder; by default the bundle's choice",
    ),
]
