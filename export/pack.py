"""Packing: a fitted run becomes a bundle, or nothing if it does not pass the parity ladder."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bundle.appearance import AppearanceModel
from bundle.encoder import GRAPHS, IMAGE_ENCODER, OnnxEncoders
from bundle.golden import OUTPUT, Case, check_golden, write_golden
from bundle.manifest import BASE_VARIANT, Manifest
from bundle.novelty import NoveltyModel
from bundle.store import MANIFEST, open_bundle, seal, staged_folder
from cohort.cohort import Cohort
from export.card import model_card
from export.graphs import Graph, graphs_of, to_onnx
from export.held_out import held_out
from export.ladder import FP16, INT8, RUNGS, card_lines, climb_precisions, write_fp16, write_int8
from export.parity import climb
from training.config import Config
from training.data import Squares
from training.encoders import load_encoders
from training.progress import StageReport, silent
from training.run import SEEN, RunInfo, read_info, read_run_config, write_seen

LIMITS = (
    "Answers hold for pictures like those it was trained on; others are called not assessable "
    "as far as novelty and appearance tell them apart, which they do not always.",
    "Probabilities are calibrated at the training prevalence; a site's own prevalence is a "
    "setting of the service.",
    "Extrapolated metadata is a guess from pictures that look alike, never a fact about a person.",
    "Skin tones, sites and ages that the training data lacks were not tested.",
)
NO_CONTEXT = "Training had no patient ids: there is no risk in the context of a patient's lesions."


def export_run(
    run: Path, out: Path, *, cohort: Cohort | None = None, report: StageReport = silent
) -> Manifest:
    """Write a fitted run's bundle.

    Args:
        run: a folder that `slimp fit` wrote.
        out: the bundle folder; must not exist or be empty.
        cohort: what it was fitted on; the precisions of the image encoder are measured on its
            held-out images, and one is chosen. None packs fp32 alone.
        report: called with stage, done and total.

    Raises:
        TrainingError: the run is not fitted.
        SeenGroups: it was shown the cohort's test split.
        ParityError: ONNX and torch disagree; nothing is written.
    """
    info, config = read_info(run), read_run_config(run)
    held = None
    if cohort is not None:
        spec, kept = config.image.input, config.batch.kept_mib
        held = held_out(info, cohort, lambda rows: Squares(cohort, rows, spec, keep_mib=kept))
    encoders = load_encoders(run)
    graphs = graphs_of(encoders, info.record_schema, config.image.input)
    limits = LIMITS if encoders.has_context else (*LIMITS, NO_CONTEXT)
    with staged_folder(out) as stage:
        for number, graph in enumerate(graphs, 1):
            (stage / f"{graph.name}.onnx").write_bytes(to_onnx(graph))
            report("export", number, len(graphs))
        if held is not None:
            base = (stage / f"{IMAGE_ENCODER}.onnx").read_bytes()
            write_int8(base, stage / INT8.file)
            write_fp16(base, stage / FP16.file)
        for name in ("calibration.json", NoveltyModel.FILE):
            shutil.copyfile(run / name, stage / name)
        # A run of an older software has none.
        if (run / AppearanceModel.FILE).exists():
            shutil.copyfile(run / AppearanceModel.FILE, stage / AppearanceModel.FILE)
        (stage / "golden.npz").write_bytes(write_golden({g.name: _golden(g) for g in graphs}))
        write_seen(stage / SEEN, info.seen)
        content = _content(info, config, limits)
        # Sealed once without its report, so that the ladder climbs what a service would load.
        seal(stage, {**content, "parity": (), "variants": () if held is None else RUNGS})
        draft = open_bundle(stage)
        onnx_encoders = OnnxEncoders(draft, device="cpu", variant=BASE_VARIANT)
        check_golden(draft, onnx_encoders)
        cases = climb(graphs, encoders, onnx_encoders, config.image.input)
        report("parity", len(cases), len(cases))
        worst = max(case.max_abs_difference for case in cases)
        card = model_card(info, draft.calibration, worst, limits)
        content["parity"] = cases
        if held is not None:
            ladder = climb_precisions(draft, onnx_encoders, graphs[0], held, report)
            for rung in RUNGS:
                if rung.name in ladder.left_out and rung.file != f"{IMAGE_ENCODER}.onnx":
                    (stage / rung.file).unlink()
            content |= {"variants": ladder.variants, "variant": ladder.chosen}
            card += "\n".join(card_lines(ladder)) + "\n"
        (stage / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        (stage / MANIFEST).unlink()
        return seal(stage, content)


def _content(info: RunInfo, config: Config, limits: tuple[str, ...]) -> dict[str, Any]:
    return {
        "software_version": version("slimp"),
        "run_config_sha256": config.sha256(),
        "objective": info.objective,
        "image_input": config.image.input,
        "record_schema": info.record_schema,
        "embedding_dim": info.embedding_dim,
        "labels": info.labels,
        "malignant_labels": info.malignant_labels,
        "metrics": {},
        "split_recipe": info.split_recipe,
        "data": info.data,
        "limits": limits,
    }


@torch.inference_mode()
def _golden(graph: Graph) -> Case:
    """Return a small synthetic case and torch's answer to it."""
    inputs = graph.example(3, torch.Generator().manual_seed(23))
    case: Case = {k: v.numpy() for k, v in zip(GRAPHS[graph.name], inputs, strict=True)}
    case[OUTPUT] = graph.module(*inputs).numpy()
    return case
