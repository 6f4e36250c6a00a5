"""Erasures have ids, by which each catalogue knows those that it has done."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # No catalogue knows an id of an earlier erasure: each does it once more.
    _remake(
        sa.Column("erasure_id", sa.String(32), nullable=False),
        "INSERT INTO erasure SELECT pk, kind, subject_hmac, erased_at, lower(hex(randomblob(16))) "
        "FROM old_erasure",
    )


def downgrade() -> None:
    _remake(
        sa.Column("catalogue_revision", sa.Integer(), nullable=True),
        "INSERT INTO erasure SELECT pk, kind, subject_hmac, erased_at, NULL FROM old_erasure",
    )


def _remake(last: "sa.Column[object]", copy: str) -> None:
    """Give the table another last column: SQLite adds none that must be filled."""
    op.drop_index(op.f("ix_erasure_subject_hmac"), "erasure")
    op.rename_table("erasure", "old_erasure")
    op.create_table(
        "erasure",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject_hmac", sa.LargeBinary(32), nullable=False),
        sa.Column("erased_at", sa.DateTime(), nullable=False),
        last,
        sa.CheckConstraint("kind IN ('lesion', 'patient')", name=op.f("ck_erasure_kind")),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_erasure")),
    )
    op.create_index(op.f("ix_erasure_subject_hmac"), "erasure", ["subject_hmac"])
    op.execute(copy)
    op.drop_table("old_erasure")
