"""What an audit row may hold of a request and its answer: hashes and figures, nothing personal."""

import hashlib
from typing import Any

from pydantic import BaseModel
from starlette.types import Scope

from index.lesions import Receipt
from service.uploads import Form

# What an answer's row may show beside its hash: figures and labels, no id and no record.
SHOWN = ("status", "label", "malignancy", "prediction_set")


def note_input(scope: Scope, digest: str) -> None:
    """Leave the hash of what was sent for the request's row."""
    scope["state"]["audit_input"] = digest


def note_output(scope: Scope, result: object) -> None:
    """Leave what may be shown of an answer for the request's row."""
    scope["state"]["audit_output"] = summarise(result)


def digest_form(form: Form) -> str:
    """Return a hash of all parts, 64 hexadecimal digits; part names are in order."""
    digest = hashlib.sha256()
    for name, texts in sorted(form.texts.items()):
        for text in texts:
            digest.update(hashlib.sha256(f"{name}={text}".encode(errors="replace")).digest())
    for name, files in sorted(form.files.items()):
        for data in files:
            digest.update(hashlib.sha256(name.encode()).digest())
            digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def summarise(result: object) -> dict[str, Any]:
    """Return what may be shown of an answer."""
    if isinstance(result, Receipt):
        return {
            "erased": len(result.lesions),
            "images": result.images,
            "revision": result.revision,
        }
    if not isinstance(result, BaseModel):
        return {}
    text = result.model_dump_json()
    shown = {name: getattr(result, name) for name in SHOWN if hasattr(result, name)}
    return {**shown, "answer_sha256": hashlib.sha256(text.encode()).hexdigest()}
