"""The database's schema, version by version; the control plane brings it up to date at its start.

A change of a table needs a new module in `versions/`; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

CONNECTION = "connection"
"""Attribute of the Alembic configuration under which `env.py` finds the open connection."""


class MigrationError(Exception):
    """The database cannot be used; the text is one plain sentence with what to do next."""


def migrate(engine: Engine) -> None:
    """Bring the schema up to date, all or nothing. Blocking. Raises `MigrationError`."""
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                _migrate_sqlite(connection)
            else:
                with connection.begin():
                    _migrate(connection)
    except DBAPIError as error:
        url = engine.url.render_as_string(hide_password=True)
        reason = " ".join(str(error.orig).split())
        raise MigrationError(
            f"The database {url} cannot be used: {reason}. Check the address and its permissions."
        ) from None


def _migrate_sqlite(connection: Connection) -> None:
    # While tables are rebuilt, a cascade would delete what refers to them.
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    try:
        # Python's driver would not begin a transaction for statements that define tables.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        _migrate(connection)
        connection.commit()
    finally:
        connection.rollback()
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def _migrate(connection: Connection) -> None:
    config = Config()
    # The option is a template, in which a per cent sign stands for itself when doubled.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes[CONNECTION] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise MigrationError(
            f"The database is of a newer release (schema {', '.join(sorted(unknown))[:80]}): start "
            "that release, or restore a backup that this one made."
        )
    command.upgrade(config, "head")
