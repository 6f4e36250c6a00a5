"""What a training line says beside its step."""


def training_note(metrics: dict[str, float]) -> str:
    """Return the loss and the rate, and a warning where anchors have too few negatives."""
    note = f"loss {metrics['loss']:.3f}  {metrics['images_per_second']:.0f} images/s"
    wait = metrics["data_wait_share"]
    return f"{note}  data wait {wait:.0%}"
