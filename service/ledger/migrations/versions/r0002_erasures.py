"""Who was erased, as keyed hashes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger_secret",
        sa.Column("pk", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.LargeBinary(32), nullable=False),
        sa.CheckConstraint("pk = 1", name=op.f("ck_ledger_secret_one_row")),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_ledger_secret")),
    )
    op.create_table(
        "erasure",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject_hmac", sa.LargeBinary(32), nullable=False),
        sa.Column("erased_at", sa.DateTime(), nullable=False),
        sa.Column("catalogue_revision", sa.Integer(), nullable=True),
        sa.CheckConstraint("kind IN ('lesion', 'patient')", name=op.f("ck_erasure_kind")),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_erasure")),
    )
    op.create_index(op.f("ix_erasure_subject_hmac"), "erasure", ["subject_hmac"])


def downgrade() -> None:
    op.drop_table("erasure")
    op.drop_table("ledger_secret")
