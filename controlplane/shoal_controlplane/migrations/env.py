"""Run by Alembic: applies the migrations over the connection that `migrate` opened."""

from __future__ import annotations

from alembic import context

from shoal_controlplane.migrations import CONNECTION

context.configure(connection=context.config.attributes[CONNECTION], render_as_batch=True)
context.run_migrations()
