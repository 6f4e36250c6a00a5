"""The command line: `slimp VERB ...`. Exit codes: 0 done, 1 failed with one clear line, 2 usage."""

import sys

import typer

from slimp import verbs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SLIMP: skin lesion image-metadata pre-training, from published data to a served answer. "
    "Research use only; not a medical device.",
)
for name, verb in verbs.ALL.items():
    app.command(name)(verb)


def main() -> None:
    """Run the command and turn an expected error into one line."""
    from bundle.errors import LesionError

    try:
        app()
    except LesionError as error:
        print(f"slimp: {error}", file=sys.stderr)  # noqa: T201 the command's own last word
        sys.exit(1)
    except KeyboardInterrupt:
        print("slimp: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(1)
