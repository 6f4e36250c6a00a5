import numpy as np
import pytest
import torch

from cohort.cohort import Cohort
from training.config import ObjectiveSettings
from training.data import fit_schema, load_rows
from training.record_batches import RecordBatches


def test_records_of_a_batch_come_once_a_patient_and_with_columns_hidden(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], ())
    schema = fit_schema(cohort.schema, rows)
    index = torch.cat([torch.from_numpy((rows.patient == p).nonzero()[0][:3]) for p in (2, 0)])
    batch = RecordBatches(rows, schema, ObjectiveSettings(column_dropout=0)).batch(index)
    assert batch["slot"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert batch["lesion_group"].tolist() == rows.lesion[index.numpy()].tolist()
    assert len(batch["patient_values"]) == 2
    expected = rows.take(index.numpy()[[0, 3]]).encode(schema, "patient").values
    assert batch["patient_values"].tolist() == expected.tolist()
    assert torch.equal(batch["lesion_present"], batch["raw_lesion_present"])
    hidden = RecordBatches(rows, schema, ObjectiveSettings(column_dropout=1)).batch(index)
    assert not hidden["lesion_present"].any()
    assert hidden["raw_lesion_present"].any()


def test_corruption_shows_other_rows_values_and_leaves_the_raw_record(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], ())
    schema = fit_schema(cohort.schema, rows)
    settings = ObjectiveSettings(column_dropout=0, column_corruption=0.4)
    index = torch.arange(len(rows)).repeat(40)
    torch.manual_seed(0)
    batches = RecordBatches(rows, schema, settings)
    batch = batches.batch(index)
    values, raw = batch["lesion_values"], batch["raw_lesion_values"]
    assert raw.tolist() == batches.encoded["lesion"].values[index.numpy()].tolist()
    assert torch.equal(batch["lesion_present"], batch["raw_lesion_present"])
    encoded = batches.encoded["lesion"]
    for column in range(values.shape[1]):
        own, there = encoded.values[:, column], encoded.present[:, column]
        # A donor with the same value, or with none, changes nothing.
        differs = (own[:, None] != own[None]) & there[:, None] & there[None]
        changed = (values[:, column] != raw[:, column]).numpy()
        assert changed.mean() == pytest.approx(0.4 * differs.mean(), abs=0.03)
        present = batch["lesion_present"][:, column].numpy()
        assert np.isin(values[present, column].numpy(), own[there]).all()
        assert not changed[~present].any()
