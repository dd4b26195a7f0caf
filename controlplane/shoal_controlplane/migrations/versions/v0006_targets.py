"""Targets of offload, what operators do by hand on them, and the targets of a deployment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployment", sa.Column("offload", sa.Text, nullable=False, server_default="[]"))
    op.create_table(
        "target",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("credential", sa.Text, nullable=False),
        sa.Column("price_per_replica_hour", sa.Float, nullable=False),
        sa.Column("price_per_request", sa.Float, nullable=False),
        sa.Column("cap_per_hour", sa.Float),
        sa.Column("max_replicas", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_table(
        "target_model",
        sa.Column(
            "target",
            sa.String(64),
            sa.ForeignKey("target.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("placed", sa.Boolean, nullable=False),
        sa.Column("replicas", sa.Integer),
    )
