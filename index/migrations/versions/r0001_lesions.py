"""Lesions, their images, values and thumbnails."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VECTOR_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "catalogue_info",
        sa.Column("pk", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle_id", sa.String(64), nullable=False),
        sa.Column("variant", sa.String(32), nullable=False),
        sa.Column("embedding_dim", sa.Integer(), nullable=False),
        sa.Column("field_schema", sa.JSON(), nullable=False),
        sa.Column("revision", VECTOR_ID, nullable=False),
        sa.Column("last_pk", VECTOR_ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("pk = 1", name=op.f("ck_catalogue_info_one_row")),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_catalogue_info")),
    )
    op.create_table(
        "lesion",
        sa.Column("pk", VECTOR_ID, autoincrement=False, nullable=False),
        sa.Column("lesion_id", sa.String(255), nullable=False),
        sa.Column("patient_id", sa.String(255), nullable=True),
        sa.Column("label", sa.String(255), nullable=True),
        sa.Column("malignant", sa.Boolean(), nullable=True),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("bundle_id", sa.String(64), nullable=False),
        sa.Column("variant", sa.String(32), nullable=False),
        sa.Column("revision", VECTOR_ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_lesion")),
        sa.UniqueConstraint("lesion_id", name=op.f("uq_lesion_lesion_id")),
    )
    for column in ("patient_id", "label", "malignant"):
        op.create_index(op.f(f"ix_lesion_{column}"), "lesion", [column])
    _create_parts()


def _create_parts() -> None:
    op.create_table(
        "lesion_image",
        sa.Column("lesion_pk", VECTOR_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        _to_lesion("lesion_image"),
        sa.PrimaryKeyConstraint("lesion_pk", "position", name=op.f("pk_lesion_image")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_lesion_image_content_hash"), "lesion_image", ["content_hash"])
    op.create_table(
        "field_value",
        sa.Column("lesion_pk", VECTOR_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String(255), nullable=True),
        _to_lesion("field_value"),
        sa.PrimaryKeyConstraint("lesion_pk", "name", name=op.f("pk_field_value")),
        sqlite_with_rowid=False,
    )
    for column in ("text", "number"):
        op.create_index(
            f"ix_field_value_name_{column}_lesion_pk",
            "field_value",
            ["name", column, "lesion_pk"],
            sqlite_where=sa.text(f"{column} IS NOT NULL"),
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.create_table(
        "thumbnail",
        sa.Column("lesion_pk", VECTOR_ID, nullable=False),
        sa.Column("image", sa.LargeBinary(), nullable=False),
        _to_lesion("thumbnail"),
        sa.PrimaryKeyConstraint("lesion_pk", name=op.f("pk_thumbnail")),
    )


def _to_lesion(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_lesion_pk_lesion")
    return sa.ForeignKeyConstraint(["lesion_pk"], ["lesion.pk"], name=name, ondelete="CASCADE")


def downgrade() -> None:
    for table in ("thumbnail", "field_value", "lesion_image", "lesion", "catalogue_info"):
        op.drop_table(table)
