"""Rows of the models room."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column
from sqlmodel import Field, SQLModel


class ModelVersionRow(SQLModel, table=True):
    """One version of a model. It is written once; `revision` would count changes.

    `signature`, `card` and `labels` are JSON documents, `card` and `labels` null if not given.
    `max_batch` is 0 without a batch dimension; `created_at` in Unix seconds.
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
    created_at: float
    revision: int = 1
