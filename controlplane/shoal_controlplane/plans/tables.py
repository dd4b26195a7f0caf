"""Tables of plans, and of the parts that were cut out of models."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text
from sqlmodel import Field, SQLModel


class PlanRow(SQLModel, table=True):
    """The plan of a sharded deployment, a JSON object."""

    __tablename__ = "plan"

    deployment: str = Field(
        primary_key=True, max_length=64, foreign_key="deployment.name", ondelete="CASCADE"
    )
    document: str = Field(sa_column=Column(Text, nullable=False))


class PartRow(SQLModel, table=True):
    """A file with the segments [first, last) of a model, cut for inputs of `shapes`, a JSON
    object. What devices measured of it is stored under its digest."""

    __tablename__ = "part"

    model_digest: str = Field(primary_key=True, max_length=71)
    shapes: str = Field(sa_column=Column(Text, primary_key=True))
    first: int = Field(primary_key=True)
    last: int = Field(primary_key=True)
    digest: str = Field(max_length=71, index=True)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    document: str = Field(sa_column=Column(Text, nullable=False))
