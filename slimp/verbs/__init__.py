"""The verbs by name."""

from collections.abc import Callable

from typer import Typer

from slimp.verbs import audit, catalogue
from slimp.verbs.adapt import adapt
from slimp.verbs.backup import backup
from slimp.verbs.compare import compare
from slimp.verbs.demo import demo
from slimp.verbs.evaluate import evaluate
from slimp.verbs.export import export
from slimp.verbs.fit import fit
from slimp.verbs.index import index
from slimp.verbs.keys import keys
from slimp.verbs.predict import predict
from slimp.verbs.prepare import prepare
from slimp.verbs.restore import restore
from slimp.verbs.serve import serve
from slimp.verbs.train import train

ALL: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "train": train,
    "adapt": adapt,
    "fit": fit,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "index": index,
    "serve": serve,
    "predict": predict,
    "demo": demo,
    "backup": backup,
    "restore": restore,
}
# Verbs that have verbs of their own.
GROUPS: dict[str, Typer] = {"keys": keys, "catalogue": catalogue.app, "audit": audit.app}
