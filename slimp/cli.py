"""The command line: `slimp VERB ...`.

Exit codes: 0 done, 1 failed with one clear line, 2 usage, 3 done but for files that are listed as
refused; 130 interrupted, as in any shell.
"""

import gc
import os
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
for name, group in verbs.GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command and turn an expected error into one line."""
    from bundle.cpus import available_cpus
    from bundle.errors import LesionError

    # FAISS, torch and the linear algebra below NumPy ask for it when they are imported, and know of
    # no container's quota: threads beyond it would stop each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    # Imported modules stay: searching them for cycles again and again while they load, and once
    # more at the exit, takes seconds and frees nothing.
    gc.set_threshold(50_000)
    try:
        app()
    except (LesionError, OSError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(f"{error}: install slimp[train], and slimp[cpu] or slimp[gpu], which alone can serve")
    finally:
        gc.freeze()


def _fail(message: str) -> None:
    sys.stderr.write(f"slimp: {message}\n")
    sys.exit(1)
