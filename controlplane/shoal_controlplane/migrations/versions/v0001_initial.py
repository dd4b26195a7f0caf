"""The first schema: models, devices, deployments, events, stored answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_version",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(71), nullable=False, index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("max_batch", sa.Integer, nullable=False),
        sa.Column("opset", sa.Integer),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("signature", sa.JSON, nullable=False),
        sa.Column("card", sa.JSON),
        sa.Column("labels", sa.JSON),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("presence", sa.String(16), nullable=False),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("capabilities", sa.Text),
        sa.Column("reported", sa.Text),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("cordoned", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_table(
        "deployment",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(64), nullable=False, index=True),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("replicas", sa.Integer),
        sa.Column("selector", sa.Text, nullable=False),
        sa.Column("slo_ms", sa.Float),
        sa.Column("max_batch", sa.Integer),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("completed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "assignment",
        sa.Column(
            "deployment",
            sa.String(64),
            sa.ForeignKey("deployment.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("device", sa.String(64), primary_key=True),
    )
    op.create_table(
        "goal",
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("body_digest", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("headers", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
    )
