"""Which erasures a catalogue has done."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasure_done",
        sa.Column("erasure_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("erasure_id", name=op.f("pk_erasure_done")),
    )


def downgrade() -> None:
    op.drop_table("erasure_done")
