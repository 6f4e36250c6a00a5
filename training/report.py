"""What an evaluation leaves behind: `metrics.json`, `report.md`, `predictions.csv` and plots.

`draws.npz` holds the resampled values of every condition's figures, by "condition/figure": what
`slimp compare` makes paired intervals of.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bundle.arrays import write_arrays
from bundle.manifest import RESEARCH_USE
from training.conditions import Answers
from training.data import Rows
from training.plots import draw_plots
from training.resampling import Draws
from training.scores import Raw, Truth

METRICS = "metrics.json"
REPORT = "report.md"
PREDICTIONS = "predictions.csv"
DRAWS = "draws.npz"
PREDICTED = ("image", "given")
TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "macro_auroc": "Macro AUROC",
    "malignant_auroc": "Malignant AUROC",
    "malignant_auroc_without_akiec": "Malignant AUROC, no akiec",
    "melanoma_auroc": "Melanoma AUROC",
    "malignant_auprc": "Malignant AUPRC",
    "malignant_pauc_above_80_sensitivity": "Malignant pAUC above 80 % sensitivity",
    "sensitivity_at_95_specificity": "Sensitivity at 95 % specificity",
    "accuracy_most_probable": "Accuracy, most probable label",
    "balanced_accuracy_most_probable": "Balanced accuracy, most probable label",
    "expected_calibration_error": "Expected calibration error",
    "brier": "Brier score",
    "conformal_coverage": "Conformal coverage",
    "conformal_set_size": "Conformal set size",
}
LABEL_TITLES = {**TITLES, "recall": "Recall", "auroc": "AUROC"}
Metrics = Mapping[str, Any]
Row = Sequence[str]


@dataclass(frozen=True)
class Evaluation:
    """Everything that is written down of one evaluation of N rows."""

    metrics: dict[str, Any]
    rows: Rows
    raw: Raw
    truth: Truth
    answers: dict[str, Answers]
    draws: dict[str, dict[str, Draws]]
    pages: dict[str, Figure]

    def with_metrics(self, metrics: dict[str, Any]) -> "Evaluation":
        return replace(self, metrics=metrics)


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write every file of an evaluation into an empty folder."""
    metrics = evaluation.metrics
    text = json.dumps(metrics, indent=1, allow_nan=False)
    (folder / METRICS).write_text(text + "\n", encoding="utf-8")
    _write_predictions(folder / PREDICTIONS, evaluation)
    draws = {f"{k}/{name}": v for k, own in evaluation.draws.items() for name, v in own.items()}
    (folder / DRAWS).write_bytes(write_arrays(draws))
    plots = draw_plots(
        folder,
        {name: answered.probabilities for name, answered in evaluation.answers.items()},
        evaluation.truth,
        metrics["missing_metadata"],
        metrics["seen"]["mark"],
        evaluation.pages,
    )
    lines = [*markdown(metrics), *_pictures(plots)]
    (folder / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_predictions(path: Path, evaluation: Evaluation) -> None:
    shown = {k: evaluation.answers[k] for k in PREDICTED if k in evaluation.answers}
    names = [f"{k}_{label}" for k in shown for label in evaluation.truth.labels]
    rows = evaluation.rows
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "lesion_id", "label", *names])
        for i, image_id in enumerate(rows.image_id):
            values = [f"{p:.6g}" for answered in shown.values() for p in answered.probabilities[i]]
            writer.writerow([image_id, rows.lesion_id[i], evaluation.raw.names[i] or "", *values])


def _pictures(names: Sequence[str]) -> list[str]:
    head = ["", "## Plots", ""] if names else []
    return [*head, *(f"![{Path(name).stem}]({name})\n" for name in names)]


def show(figure: Metrics | None) -> str:
    """Return a figure as "value (low to high)", or why there is none."""
    if figure is None:
        return ""
    if figure.get("value") is None:
        return f"none: {figure['reason']}"
    if figure.get("low") is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def table(header: Row, rows: Sequence[Row], mark: str | None) -> list[str]:
    """Return a Markdown table, with the mark below it if there is one."""
    lines = [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    return ["", *lines, "", *([f"*This table {mark}.*", ""] if mark else [])]


def _line(cells: Row) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(metrics: Metrics) -> list[str]:
    """Return the report's lines."""
    model, cohort = metrics["model"], metrics["cohort"]
    mark = metrics["seen"]["mark"]
    return [
        f"# Evaluation on {cohort['name']}, {', '.join(cohort['splits'])}",
        "",
        RESEARCH_USE,
        "",
        f"{model['kind'].capitalize()} {model['id'][:12]} ({model['variant']}); "
        f"{cohort['images']} images of {cohort['lesions']} lesions in {cohort['groups']} groups "
        f"(by {cohort['group']}), {cohort['malignant']} images malignant, "
        f"{cohort['malignant_unknown']} of unknown malignancy, {cohort['unlabelled']} unlabelled.",
        *_what_was_chosen(metrics),
        f"Value (low to high): 95 % interval, {metrics['bootstrap']['samples']} resamples of "
        f"{cohort['group']}s, seed {metrics['bootstrap']['seed']}.",
        *_conditions(metrics, mark),
        *_differences(metrics, mark),
        *_harm(metrics["harm"], mark),
        *_labels(metrics, mark),
        *_subgroups(metrics["subgroups"], mark),
        *_patients(metrics["patients"], mark),
        *_against(metrics["against"], mark),
        *_metadata(metrics, mark),
        *_assessable(metrics["assessable"], mark),
        *_frozen(metrics["frozen"], mark),
        *_near_duplicates(metrics),
    ]


def _conditions(metrics: Metrics, mark: str | None) -> Iterator[str]:
    present, missing = _split(metrics["conditions"])
    names = [k for k in TITLES if any(k in figures for figures in present.values())]
    yield from ("", "## By what the model sees")
    rows = [[TITLES[k], *(show(c.get(k)) for c in present.values())] for k in names]
    yield from table(["", *present], rows, mark)
    for name, reason in missing.items():
        yield f"No figures for `{name}`: {reason}."
    for name, figures in present.items():
        yield f"- `{name}` probabilities are calibrated as {figures['calibrated_as']}."
    yield from (f"- {TITLES[k]}: {metrics['meaning'][k]}." for k in names)


def _split(conditions: Metrics) -> tuple[dict[str, Metrics], dict[str, str]]:
    present = {k: v for k, v in conditions.items() if "calibrated_as" in v}
    return present, {k: v["reason"] for k, v in conditions.items() if k not in present}


def _differences(metrics: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## Differences", "", "Paired: the same images and resamples on both sides.")
    yield from _compared(metrics["differences"], mark)


def _compared(comparisons: Mapping[str, Metrics], mark: str | None) -> Iterator[str]:
    columns = ("balanced_accuracy", "macro_auroc", "malignant_auroc", "melanoma_auroc")
    kept = [k for k in columns if any(k in c for c in comparisons.values())]
    rows = [
        [name, *([f"none: {c['reason']}"] + [""] * len(kept))[: len(kept)]]
        if "reason" in c
        else [name, *(show(c.get(k)) for k in kept)]
        for name, c in comparisons.items()
    ]
    if kept:
        yield from table(["", *(TITLES[k] for k in kept)], rows, mark)
    else:
        yield from (f"- {name}: none, {c['reason']}." for name, c in comparisons.items())


def _labels(metrics: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## By label")
    present, _ = _split(metrics["conditions"])
    first = next(iter(present.values()))["labels"]
    if "reason" in first:
        yield from ("", f"None: {first['reason']}.")
        return
    for kinds in (("recall", "auroc"), ("conformal_coverage", "conformal_set_size")):
        header = ["", "images", *(f"{LABEL_TITLES[kind]}, {k}" for k in present for kind in kinds)]
        rows = [
            [
                label,
                str(figures["images"]),
                *(show(c["labels"][label][kind]) for c in present.values() for kind in kinds),
            ]
            for label, figures in first.items()
        ]
        yield from table(header, rows, mark)


def _harm(harm: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## What metadata changes", "")
    if "reason" in harm:
        yield f"None: {harm['reason']}."
        return
    yield "Shares of all labelled images; what the image alone answers is the other side."
    rows = [[name, show(f["harmed"]), show(f["helped"])] for name, f in harm.items()]
    yield from table(["", "right made wrong", "wrong made right"], rows, mark)


def _subgroups(subgroups: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## By subgroup", "")
    if not subgroups:
        yield "None: the records hold no sex, age, site or skin type."
        return
    conditions = [k for k in next(iter(next(iter(subgroups.values())).values())) if k != "images"]
    names = ("balanced_accuracy", "malignant_auroc", "conformal_coverage")
    header = ["", "images", *(f"{TITLES[n]}, {c}" for c in conditions for n in names)]
    for field, groups in subgroups.items():
        rows = [
            [
                f"{field} {name}",
                str(f["images"]),
                *(show(f[c][n]) for c in conditions for n in names),
            ]
            for name, f in groups.items()
        ]
        yield from table(header, rows, mark)


def _patients(patients: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## A patient's lesions together", "")
    if "reason" in patients:
        yield f"None: {patients['reason']}."
        return
    yield (
        f"{patients['lesions']} lesions ({patients['lesions_malignant']} malignant) of "
        f"{patients['patients']} patients, metadata given. Sensitivity in the top k: the "
        "share of a patient's malignant lesions among the patient's k highest scores, mean over "
        "the patients with a malignant lesion and more than k lesions; ties count against it. With "
        "15 it is the secondary metric of the ISIC 2024 challenge."
    )
    columns = ("alone", "in_context", "difference")
    rows = [
        [name.replace("_", " "), str(f.get("patients", "")), *(show(f[c]) for c in columns)]
        for name, f in patients.items()
        if isinstance(f, Mapping)
    ]
    yield from table(["", "patients", "lesion alone", "in context", "difference"], rows, mark)
    count = show(patients["malignant_auroc"]["lesion_count"])
    yield from (
        "",
        f"Malignant AUROC by how few lesions the patient has, and nothing else: {count}.",
    )


def _against(against: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## Against other answers to the same images", "")
    if "reason" in against:
        yield f"None: {against['reason']}."
        return
    other = "; ".join(f"{TITLES[k]} {show(v)}" for k, v in against["other"].items())
    yield (
        f"{against['images']} shared images, {against['images_without_answer']} without the "
        f"other's answer. The other: {other} ({against['decision']}). Ours minus the other's:"
    )
    yield from _compared(against["difference"], mark)


def _metadata(metrics: Metrics, mark: str | None) -> Iterator[str]:
    fields, extrapolation = metrics["fields"], metrics["extrapolation"]
    yield from ("", "## Metadata", "")
    yield f"Read: {', '.join(fields['used']) or 'none'}."
    for name, reason in fields["left_out"].items():
        yield f"- `{name}` is left out: {reason}."
    for name, count in fields["values_not_accepted"].items():
        yield f"- `{name}`: {count} values are not accepted by the model and count as missing."
    yield f"- {fields['images_without_metadata']} images have no metadata."
    if curve := metrics["missing_metadata"]:
        columns = ("balanced_accuracy", "macro_auroc", "malignant_auroc")
        rows = [[f"{p['hidden_share']:.0%}", *(show(p[k]) for k in columns)] for p in curve]
        yield from table(["columns hidden", *(TITLES[k] for k in columns)], rows, mark)
    yield from _missingness(metrics["missingness"])
    if "reason" in extrapolation:
        yield from ("", f"No extrapolation: {extrapolation['reason']}.")
        return
    rows = [_field_cells(name, f) for name, f in extrapolation["fields"].items()]
    header = [
        "extrapolated field",
        "answered",
        "compared",
        "right",
        "mean absolute error",
        "commonest value right",
    ]
    yield from table(header, rows, mark)
    yield "A number is right when it lies within one standard deviation of training's values."
    yield from _study(extrapolation["study"], mark)


def _study(study: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "### Is it the neighbours' metadata?", "")
    if "reason" in study:
        yield f"None: {study['reason']}."
        return
    yield (
        "What is served (extrapolated: neighbours' metadata at the weight that calibration fitted, "
        f"{study['weight']:.1f}), and metadata taken as if given: of neighbours, of another "
        "image's neighbours (shuffled), and drawn field by field from the catalogue (marginal); "
        "these three calibrated as given, differences paired."
    )
    columns = ("balanced_accuracy", "macro_auroc")
    header = [
        "",
        *(TITLES[k] for k in columns),
        *(f"{TITLES[k]} minus image's" for k in columns),
        *(f"{TITLES[k]} minus neighbours'" for k in columns),
        TITLES["expected_calibration_error"],
        "right made wrong",
        "wrong made right",
    ]
    rows = [
        [
            name,
            *(show(f[k]) for k in columns),
            *(show(f["minus_image"][k]) for k in columns),
            *(show(f["minus_neighbours"][k]) for k in columns),
            show(f["expected_calibration_error"]),
            show(f.get("harmed")),
            show(f.get("helped")),
        ]
        for name, f in study["answers"].items()
    ]
    yield from table(header, rows, mark)


def _missingness(missing: Metrics) -> Iterator[str]:
    alone, moved = missing["indicators_alone"], missing["blanked"]
    yield ""
    if "reason" in alone:
        yield f"- Which fields are missing says nothing that could be measured: {alone['reason']}."
    else:
        yield (
            "- A model that sees only which fields are missing: macro AUROC "
            f"{show(alone['macro_auroc'])}, malignant AUROC {show(alone['malignant_auroc'])}."
        )
    if "reason" in moved:
        yield f"- Records blanked to the commonest gaps: none, {moved['reason']}."
        return
    yield (
        f"- {moved['images']} records blanked to the commonest gaps ({', '.join(moved['missing'])} "
        f"missing): malignancy moves by {show(moved['mean_change'])} on average, in size by "
        f"{show(moved['mean_size_of_change'])}."
    )


def _field_cells(name: str, figures: Metrics) -> list[str]:
    accuracy = figures["accuracy"]
    error = figures.get("mean_absolute_error")
    return [
        name,
        f"{figures['fill_share']:.3f}",
        str(figures["compared"]),
        f"none: {figures['reason']}" if accuracy is None else f"{accuracy:.3f}",
        "" if error is None else f"{error:.3g}",
        ""
        if figures["commonest_value_right"] is None
        else f"{figures['commonest_value_right']:.3f}",
    ]


def _frozen(frozen: Metrics, mark: str | None) -> Iterator[str]:
    yield from ("", "## The encoders alone", "")
    if "reason" in frozen:
        yield f"None: {frozen['reason']}."
        return
    reference = frozen["reference"]
    yield (
        f"Frozen features; what is learned from is the cohort's {reference['split']} split, "
        f"{reference['images']} images of {reference['lesions']} lesions."
    )
    sides = {name: frozen[name] for name in ("image", "image and record")}
    if "reason" in sides["image"]:
        yield f"No figures: {sides['image']['reason']}."
    else:
        yield from table(["", *sides], list(_frozen_rows(sides)), mark)
        yield from (f"- {k.replace('_', ' ')}: {v}." for k, v in frozen["meaning"].items())


def _what_was_chosen(metrics: Metrics) -> Iterator[str]:
    model, cohort, seen = metrics["model"], metrics["cohort"], metrics["seen"]
    own, counted = cohort["malignant_labels"], model["malignant_labels"]
    if {label.casefold() for label in own} != {label.casefold() for label in counted}:
        yield (
            f"Malignant is {', '.join(own) or 'no label'} in the cohort and "
            f"{', '.join(counted) or 'no label'} for the model."
        )
    if seen["images_left_out"]:
        yield f"{seen['images_left_out']} images of groups that the model was shown are left out."
    if elsewhere := seen["unseen_images_elsewhere"]:
        yield (
            f"The model was shown nothing of the cohort's other {elsewhere} images either: "
            "`--split all` evaluates them too. What is below called train is this cohort's own "
            "split, on which probes were fitted and the model was not."
        )


def _near_duplicates(metrics: Metrics) -> Iterator[str]:
    yield from ("", "## Near duplicates", "")
    frozen = metrics["frozen"]
    of_train = {} if "reason" in frozen else {"train": frozen["near_duplicates"]}
    by_split = of_train | metrics["near_duplicates"]
    if not by_split:
        yield "None: the cohort has no train, val or cal split beside the evaluated images."
    for split, found in by_split.items():
        yield (
            f"- {found['images']} of these images show, to a correlation of "
            f"{found['correlation_at_least']} or more, what a {split} image shows."
        )
        for pair in found["likest"]:
            yield f"  - {pair['image']} and {pair[f'{split}_image']}: {pair['correlation']:.3f}"


def _frozen_rows(sides: Mapping[str, Metrics]) -> Iterator[Row]:
    first = next(iter(sides.values()))
    for kind in ("linear", "neighbours", "retrieval"):
        for name, figure in first[kind].items():
            if isinstance(figure, Mapping) and name != "labels":
                title = f"{kind}: {name.replace('_', ' ')}"
                yield [title, *(show(side[kind][name]) for side in sides.values())]
    for size in first["low_shot"]:
        few = [side["low_shot"][size]["balanced_accuracy"] for side in sides.values()]
        cells = [f"{show(f)}, sd {f['sd']:.3f}" for f in few]
        yield [f"low-shot, {size}: balanced accuracy", *cells]


def _assessable(assessable: Metrics, mark: str | None) -> Iterator[str]:
    yield from (
        "",
        "## Not assessable",
        "",
        "A service gives these images no label and no probabilities; all figures above include "
        "them.",
    )
    rows = [[k.replace("_", " "), show(assessable[k])] for k in ("not_assessable", "quality")]
    rows += [[k.replace("_", " "), f"{v:.3f}"] for k, v in assessable["quality_by_reason"].items()]
    yield from table(
        ["", "share of images"],
        [*rows, *([k, show(assessable[k])] for k in ("novelty", "appearance"))],
        mark,
    )
