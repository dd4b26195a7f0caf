from __future__ import annotations

import importlib
import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlmodel import SQLModel

import shoal_controlplane
from shoal_controlplane import migrations
from shoal_controlplane.database import open_engine
from shoal_controlplane.migrations import MigrationError, migrate

ROOT = Path(next(iter(shoal_controlplane.__path__)))


def import_all_tables() -> int:
    """Import every module that defines tables, so that none is forgotten."""
    modules = [
        path.relative_to(ROOT.parent).with_suffix("")
        for path in ROOT.rglob("*.py")
        if "table=True" in path.read_text()
    ]
    for module in modules:
        importlib.import_module(".".join(module.parts))
    return len(modules)


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    assert import_all_tables() >= 5
    engine = open_engine(f"sqlite:///{tmp_path / 'shoal.db'}")
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        foreign_keys = inspect(connection).get_foreign_keys("assignment")
        assert foreign_keys[0]["options"] == {"ondelete": "CASCADE"}
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    engine.dispose()


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "100%"
    path.mkdir()
    engine = open_engine(f"sqlite:///{path / 'shoal.db'}")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO goal VALUES ('a', '{}')"))
    migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM goal")).all() == [("a", "{}")]
    engine.dispose()


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'shoal.db'}")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(MigrationError, match=r"newer release \(schema 9999\)"):
        migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    engine.dispose()


def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'shoal.db'}")

    def fail(*_args: object) -> None:
        upgrade(*_args)
        raise RuntimeError("power cut")

    upgrade = migrations.command.upgrade
    monkeypatch.setattr(migrations.command, "upgrade", fail)
    with pytest.raises(RuntimeError):
        migrate(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    monkeypatch.undo()
    migrate(engine)
    engine.dispose()


def test_two_starts_at_once(tmp_path: Path) -> None:
    engines = [open_engine(f"sqlite:///{tmp_path / 'shoal.db'}") for _ in range(2)]
    failures: list[Exception] = []

    def start(number: int) -> None:
        try:
            migrate(engines[number])
        except MigrationError as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with engines[0].connect() as connection:
        assert "device" in inspect(connection).get_table_names()
    for engine in engines:
        engine.dispose()


def test_what_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "shoal.db"
    path.write_bytes(b"not a database" * 100)
    engine = open_engine(f"sqlite:///{path}")
    with pytest.raises(MigrationError, match="cannot be used: file is not a database"):
        migrate(engine)
    assert path.read_bytes() == b"not a database" * 100
    engine.dispose()


def test_tables_of_somebody_else_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "shoal.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE device (name TEXT)")
    other.close()
    engine = open_engine(f"sqlite:///{path}")
    with pytest.raises(MigrationError, match="device already exists"):
        migrate(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["device"]
    engine.dispose()
