"""What a training line says beside its step."""

# An anchor with fewer negatives than this learns little from its batch.
FEW_NEGATIVES = 16


def training_note(metrics: dict[str, float]) -> str:
    """Return the loss and the rate, and a warning where anchors have too few negatives."""
    note = f"loss {metrics['loss']:.3f}  {metrics['images_per_second']:.0f} images/s"
    note += f"  data wait {metrics['data_wait_share']:.0%}"
    for level in ("lesion", "patient"):
        negatives = metrics.get(f"{level}_negatives", FEW_NEGATIVES)
        if negatives < FEW_NEGATIVES:
            note += f"  few negatives: {negatives:.0f} a {level}"
    return note
