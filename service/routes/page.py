"""The page at / and the documentation at /docs: plain files, nothing from another host."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parent.parent / "page"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(FOLDER / "index.html")


@router.get("/docs")
async def docs() -> FileResponse:
    return FileResponse(FOLDER / "docs.html")


def mount_page(app: FastAPI) -> None:
    """Serve the page, and its scripts and styles under /page."""
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=FOLDER), name="page")
