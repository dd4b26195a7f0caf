"""Deployments may be sharded; plans, and the parts that were cut out of models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployment", sa.Column("shards", sa.Integer))
    op.add_column(
        "deployment",
        sa.Column("objective", sa.String(16), nullable=False, server_default="throughput"),
    )
    op.add_column("deployment", sa.Column("shapes", sa.Text, nullable=False, server_default="{}"))
    op.create_table(
        "plan",
        sa.Column(
            "deployment",
            sa.String(64),
            sa.ForeignKey("deployment.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "part",
        sa.Column("model_digest", sa.String(71), primary_key=True),
        sa.Column("shapes", sa.Text, primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), nullable=False, index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
