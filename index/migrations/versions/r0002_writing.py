"""How a label was confirmed, what was removed, and which requests wrote."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

VECTOR_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("lesion", sa.Column("confirmed_by", sa.String(64), nullable=True))
    op.create_index(op.f("ix_lesion_revision"), "lesion", ["revision"])
    op.create_table(
        "removal",
        sa.Column("lesion_pk", VECTOR_ID, autoincrement=False, nullable=False),
        sa.Column("revision", VECTOR_ID, nullable=False),
        sa.PrimaryKeyConstraint("lesion_pk", name=op.f("pk_removal")),
    )
    op.create_index(op.f("ix_removal_revision"), "removal", ["revision"])
    op.create_table(
        "written_request",
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("lesion_pk", VECTOR_ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_sha256", name=op.f("pk_written_request")),
    )


def downgrade() -> None:
    op.drop_table("written_request")
    op.drop_table("removal")
    op.drop_index(op.f("ix_lesion_revision"), "lesion")
    op.drop_column("lesion", "confirmed_by")
