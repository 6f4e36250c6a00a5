"""Data sets by name."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle.errors import CohortError
from cohort.derm7pt import derm7pt_source
from cohort.ham10000 import ham10000_source
from cohort.hiba import hiba_source
from cohort.isic2019 import isic2019_source
from cohort.isic2020 import isic2020_source
from cohort.lines import nearest
from cohort.milk10k import milk10k_source
from cohort.pad_ufes_20 import pad_ufes_20_source
from cohort.ph2 import ph2_source
from cohort.rows import Source
from cohort.slice3d import slice3d_source
from cohort.table import table_source


def _synthetic(**options: Any) -> Source:
    # Drawing needs more than reading does: it is loaded only where a cohort is drawn.
    from cohort.synthetic import synthetic_source

    _check_options("synthetic", synthetic_source, options)
    return synthetic_source(**options)


READERS: dict[str, Callable[..., Source]] = {
    "ham10000": ham10000_source,
    "pad_ufes_20": pad_ufes_20_source,
    "slice3d": slice3d_source,
    "isic2019": isic2019_source,
    "isic2020": isic2020_source,
    "hiba": hiba_source,
    "ph2": ph2_source,
    "derm7pt": derm7pt_source,
    "milk10k": milk10k_source,
    "table": table_source,
}
NAMES = (*READERS, "synthetic")


def open_source(name: str, path: Path | None = None, **options: Any) -> Source:
    """Return the named data set, opened for reading.

    Args:
        name: one of `NAMES`.
        path: where it lies; None for `synthetic`, which is drawn and not read.
        options: what that reader accepts beside a path.

    Raises:
        CohortError: no such data set or option, or no readable data set at that path.
    """
    if name == "synthetic":
        if path is not None:
            raise CohortError(f"synthetic: expected no path, got {path}: it is drawn, not read")
        return _synthetic(**options)
    reader = READERS.get(name)
    if reader is None:
        raise CohortError(f"unknown data set {name!r}; {nearest(name, NAMES)} ({', '.join(NAMES)})")
    if path is None or not path.exists():
        raise CohortError(f"{name}: expected the path of its files, got {path}")
    _check_options(name, reader, options)
    return reader(path, **options)


def parse_options(texts: Sequence[str]) -> dict[str, bool | str]:
    """Return a reader's options from `NAME=VALUE` texts; true and false are what they say.

    Raises:
        CohortError: a text has no name.
    """
    parsed: dict[str, bool | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CohortError(f"expected an option as NAME=VALUE, got {text!r}")
        parsed[name] = {"true": True, "false": False}.get(value.casefold(), value)
    return parsed


def _check_options(name: str, reader: Callable[..., Source], options: dict[str, Any]) -> None:
    parameters = dict(inspect.signature(reader).parameters)
    parameters.pop("path", None)
    known = list(parameters)
    if unknown := sorted(set(options) - set(known)):
        hint = f"{nearest(unknown[0], known)}" if known else "it has no options"
        raise CohortError(f"{name}: unknown option {unknown[0]!r}; {hint}")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise CohortError(f"{name}: expected the option {option!r}, it is not given")
        if isinstance(parameter.default, bool) and not isinstance(options.get(option, True), bool):
            raise CohortError(f"{name}: {option}: expected true or false, got {options[option]!r}")
