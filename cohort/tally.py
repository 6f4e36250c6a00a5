"""The books of a preparation: what was read, kept and dropped, and whether ids are consistent."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from bundle.errors import CohortError
from cohort.info import Counts, SplitCounts
from cohort.rows import DroppedRow, LesionImage, UnreadableValue
from cohort.splits import SPLITS, Split


class Tally:
    """Counts rows as they pass, and finds ids that contradict each other.

    Attributes:
        dropped: every row left out, in order.
        value_errors: every value not accepted, with the row it stood in.
        images: rows kept so far.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.dropped: list[DroppedRow] = []
        self.value_errors: list[tuple[str, UnreadableValue]] = []
        self.images = 0
        self._labels = labels
        self._image_ids: set[str] = set()
        self._group_of_lesion: dict[str, str] = {}
        self._patients: set[str] = set()
        self._finished_groups: set[str] = set()
        self._group: str | None = None
        self._by_split: defaultdict[Split, Counter[str | None]] = defaultdict(Counter)

    @property
    def rows_read(self) -> int:
        return self.images + len(self.dropped)

    def drop(self, row: str, reason: str) -> None:
        self.dropped.append(DroppedRow(row, reason))

    def duplicate_reason(self, image: LesionImage) -> str | None:
        """Return why the image cannot stand beside those before it, or None."""
        if image.image_id in self._image_ids:
            return "its image id stands in an earlier row"
        return None

    def keep(self, image: LesionImage, split: Split) -> None:
        """Count an image that is written.

        Raises:
            CohortError: the rows of a group are not together, or a lesion belongs to two groups.
        """
        self._follow_group(image.group_id)
        owner = self._group_of_lesion.setdefault(image.lesion_id, image.group_id)
        if owner != image.group_id:
            raise CohortError(
                f"lesion {image.lesion_id!r} belongs to {owner!r} and to {image.group_id!r}: "
                "a lesion has one patient; make lesion ids unique across patients, and name the "
                "patient in each of a lesion's rows (one without is taken for a lesion by itself)"
            )
        self.images += 1
        self._image_ids.add(image.image_id)
        if image.patient_id is not None:
            self._patients.add(image.patient_id)
        self._by_split[split][image.label] += 1
        row = image.row or image.image_id
        self.value_errors.extend((row, error) for error in image.value_errors)

    def _follow_group(self, group_id: str) -> None:
        if group_id == self._group:
            return
        if self._group is not None:
            self._finished_groups.add(self._group)
        if group_id in self._finished_groups:
            raise CohortError(
                f"expected all rows of {group_id!r} together, got them apart: sort the source"
            )
        self._group = group_id

    def counts(self, splits: Mapping[str, Split]) -> Counts:
        """Return the counts so far; `splits` gives the split of each group."""
        labels = sum(self._by_split.values(), Counter[str | None]())
        lesions = Counter(splits[group_id] for group_id in self._group_of_lesion.values())
        groups = Counter(splits[group_id] for group_id in {*self._group_of_lesion.values()})
        return Counts(
            rows_read=self.rows_read,
            images=self.images,
            dropped=len(self.dropped),
            lesions=len(self._group_of_lesion),
            patients=len(self._patients) or None,
            unlabelled=labels[None],
            labels={label: labels[label] for label in self._labels},
            splits={
                split: SplitCounts(
                    images=self._by_split[split].total(),
                    lesions=lesions[split],
                    groups=groups[split],
                    labels={label: self._by_split[split][label] for label in self._labels},
                )
                for split in SPLITS
            },
        )
