"""Rows of the models room."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ForeignKeyConstraint, Text
from sqlmodel import Field, SQLModel


class ModelVersionRow(SQLModel, table=True):
    """One version of a model. Only its variants change; `revision` counts these changes.

    `signature`, `card`, `labels` and `golden` are JSON documents, all but `signature` null if not
    given. `max_batch` is 0 without a batch dimension; `created_at` in Unix seconds.
    """

    __tablename__ = "model_version"

    name: str = Field(primary_key=True, max_length=64)
    version: str = Field(primary_key=True, max_length=64)
    digest: str = Field(index=True, max_length=71)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    format: str = Field(max_length=16)
    max_batch: int
    opset: int | None = None
    parameters: int = Field(sa_column=Column(BigInteger, nullable=False))
    signature: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    card: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    labels: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    golden: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created_at: float
    revision: int = 1


class ModelVariantRow(SQLModel, table=True):
    """One more file of a version; `target` and `note` are empty if not given."""

    __tablename__ = "model_variant"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"],
            ["model_version.name", "model_version.version"],
            ondelete="CASCADE",
        ),
    )

    name: str = Field(primary_key=True, max_length=64)
    version: str = Field(primary_key=True, max_length=64)
    variant: str = Field(primary_key=True, max_length=64)
    digest: str = Field(index=True, max_length=71)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    format: str = Field(max_length=16)
    target: str = Field(max_length=64)
    note: str = Field(sa_column=Column(Text, nullable=False))
    created_at: float
