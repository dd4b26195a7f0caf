"""Deployments may require an accelerator; what was measured is kept by file, board, runtime."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "deployment",
        sa.Column("require_accelerator", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "measured",
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("board", sa.String(257), primary_key=True),
        sa.Column("runtime", sa.String(128), primary_key=True),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("accelerated", sa.Float),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
