import numpy as np
import torch

from bundle.fields import Field, FieldSchema, Record, Value
from bundle.records import fit_fields
from tests.training.squares import SCHEMA, tiny_config
from training.config import RecordSettings
from training.encoders import TorchEncoders
from training.features import RecordFeatures, record_features
from training.heads import Classifier
from training.model import Slimp
from training.record_encoder import RecordEncoder

FIELDS = SCHEMA.at("lesion")
SETTINGS = RecordSettings(width=8, layers=1, heads=2)
DIAMETER, ITCH, SITE = range(3)
FULL: Record = {
    "diameter_mm": 5.0,
    "itch": True,
    "anatom_site": "back",
    "age_years": 50.0,
    "sex": "female",
}
OTHER: Record = {
    "diameter_mm": 0.0,
    "itch": False,
    "anatom_site": "scalp",
    "age_years": 0.0,
    "sex": "male",
}


def tower() -> RecordEncoder:
    torch.manual_seed(0)
    return RecordEncoder(FIELDS, SETTINGS, 16).eval()


def everything(count: int) -> torch.Tensor:
    return torch.ones(count, len(FIELDS), dtype=torch.bool)


def test_the_missing_token_is_not_a_real_zero() -> None:
    encoder, values, known = tower(), torch.zeros(1, 3), everything(1)
    complete = encoder(values, known)
    assert complete.shape == (1, 16)
    for column in (DIAMETER, ITCH, SITE):
        present = known.clone()
        present[0, column] = False
        assert not torch.allclose(encoder(values, present), complete, atol=1e-4)


def test_the_value_under_a_missing_flag_is_ignored() -> None:
    encoder, present = tower(), everything(2)
    present[:, DIAMETER] = False
    present[:, SITE] = False
    values = torch.tensor([[0.0, 1.0, 0.0], [7e5, 1.0, -9.0]])
    first, second = encoder(values, present)
    assert torch.equal(first, second)


def test_every_category_has_a_token_of_its_own_and_a_number_scales_its_columns_vector() -> None:
    encoder = tower()
    values = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 0]], dtype=torch.float32)
    tokens = encoder.tokens(values, everything(3)) - encoder.column
    torch.testing.assert_close(tokens[2, DIAMETER], 2 * tokens[1, DIAMETER])
    assert not tokens[0, DIAMETER].any()
    coded = [tokens[row, column] for row in (0, 1) for column in (ITCH, SITE)]
    for i, one in enumerate(coded):
        assert all(not torch.allclose(one, other) for other in coded[i + 1 :])
    torch.testing.assert_close(torch.stack(coded[:2]), encoder.codes.weight[[0, 2]])


def test_a_tower_of_numbers_alone_works() -> None:
    encoder = RecordEncoder([Field(name="x", level="lesion", kind="numeric")], SETTINGS, 16)
    assert torch.isfinite(encoder(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))).all()


def test_each_tower_sees_the_fields_of_its_own_level_alone() -> None:
    """Otherwise the outer loss is solved by copying the patient's record."""
    torch.manual_seed(0)
    schema = FieldSchema(fields=fit_fields(SCHEMA.fields, [{"diameter_mm": 3.0}, FULL]))
    encoders = TorchEncoders(
        Slimp(tiny_config(), schema), Classifier(16, 3, hidden=8, dropout=0), None
    )

    def features(**changes: Value) -> RecordFeatures:
        return record_features(encoders, [{**FULL, **changes}], schema)

    before = features()
    for field in schema.fields:
        for value in (None, OTHER[field.name]):
            after = features(**{field.name: value})
            is_lesion_field = field.level == "lesion"
            assert np.array_equal(after.lesion, before.lesion) != is_lesion_field
            assert np.array_equal(after.patient, before.patient) == is_lesion_field
