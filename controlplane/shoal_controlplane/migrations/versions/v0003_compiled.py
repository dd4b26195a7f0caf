"""Compiled code that devices of one kind share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "compiled",
        sa.Column("hex", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("model_digest", sa.String(71), nullable=False, index=True),
        sa.Column("digest", sa.String(71), nullable=False, index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
