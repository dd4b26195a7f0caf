"""Tables of targets, and of what operators did by hand with models on them."""

from __future__ import annotations

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel


class TargetRow(SQLModel, table=True):
    """One target. `options` is a JSON object without secrets, `credential` a reference to a
    secret, `cap_per_hour` null where spending has no cap; prices and cap are in one currency;
    `created_at` is seconds since the epoch."""

    __tablename__ = "target"

    name: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=16)
    options: str = Field(sa_column=Column(Text, nullable=False))
    credential: str = Field(sa_column=Column(Text, nullable=False))
    price_per_replica_hour: float
    price_per_request: float
    cap_per_hour: float | None = None
    max_replicas: int
    created_at: float
    revision: int


class ManualRow(SQLModel, table=True):
    """A model on a target that an operator placed there (`placed`), or whose replicas an operator
    fixed; null where they follow the need."""

    __tablename__ = "target_model"

    target: str = Field(
        primary_key=True, max_length=64, foreign_key="target.name", ondelete="CASCADE"
    )
    model: str = Field(primary_key=True, max_length=64)
    version: str = Field(primary_key=True, max_length=64)
    placed: bool
    replicas: int | None = None
