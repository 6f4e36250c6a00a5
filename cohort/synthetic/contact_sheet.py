"""A picture of the cohort to look at: one row a patient, malignant lesions framed."""

import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import typer
from PIL import Image, ImageDraw

from cohort.rows import LesionImage, Source
from cohort.synthetic.settings import DEMO_SETTINGS
from cohort.synthetic.source import synthetic_source

FRAMES = {"melanoma": "red", "basal_cell_carcinoma": "magenta"}
MARKS = {"seborrheic_keratosis": "orange", "vascular_lesion": "deepskyblue"}
MARGIN_PX = 4


def contact_sheet(
    source: Source, path: Path | str, patients: int = 8, lesions: int = 12, tile_px: int = 96
) -> None:
    """Write a PNG with the first patients, each a row of their first lesions.

    A patient's malignant lesions are moved to the front of the row and framed in red (melanoma)
    or magenta (carcinoma); keratoses have an orange and vascular lesions a blue mark.
    """
    step = tile_px + MARGIN_PX
    sheet = Image.new("RGB", (lesions * step + MARGIN_PX, patients * step + MARGIN_PX), "white")
    for row, shown in enumerate(_first_patients(source, patients)):
        shown.sort(key=lambda image: not image.malignant)
        for column, image in enumerate(shown[:lesions]):
            corner = (MARGIN_PX + column * step, MARGIN_PX + row * step)
            _paste(sheet, image, corner, tile_px)
    sheet.save(path)


def _first_patients(source: Source, patients: int) -> Iterator[list[LesionImage]]:
    images = (row for row in source.rows() if isinstance(row, LesionImage))
    for count, (_, group) in enumerate(groupby(images, key=lambda image: image.group_id), start=1):
        yield list(group)
        if count == patients:
            return


def _paste(sheet: Image.Image, image: LesionImage, corner: tuple[int, int], tile_px: int) -> None:
    with Image.open(io.BytesIO(image.image)) as picture:
        sheet.paste(picture.resize((tile_px, tile_px), Image.Resampling.BICUBIC), corner)
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    if (frame := FRAMES.get(str(image.label))) is not None:
        draw.rectangle((x - 3, y - 3, x + tile_px + 2, y + tile_px + 2), outline=frame, width=3)
    if (mark := MARKS.get(str(image.label))) is not None:
        draw.rectangle((x, y, x + 8, y + 8), fill=mark)


def main(
    out: Path = Path("sheet.png"),
    patients: int = 8,
    lesions: int = 12,
    image_px: int = 64,
    seed: int = DEMO_SETTINGS["seed"],
) -> None:
    """Write a contact sheet of the demo's cohort."""
    arguments = DEMO_SETTINGS.copy()
    arguments["image_px"], arguments["seed"] = image_px, seed
    contact_sheet(synthetic_source(**arguments), out, patients, lesions)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
