"""Table of compiled code."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text
from sqlmodel import Field, SQLModel


class CompiledRow(SQLModel, table=True):
    """Compiled code under the `hex` of its key; `document` is the key as JSON.

    `model_digest` is the model file's, `digest` and `size` (bytes) the artifact's; `device` made
    it. `created_at` in Unix seconds.
    """

    __tablename__ = "compiled"

    hex: str = Field(primary_key=True, max_length=64)
    document: str = Field(sa_column=Column(Text, nullable=False))
    model_digest: str = Field(index=True, max_length=71)
    digest: str = Field(index=True, max_length=71)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    device: str = Field(max_length=64)
    created_at: float
