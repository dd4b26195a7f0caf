"""Table of events."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text
from sqlmodel import Field, SQLModel


class EventRow(SQLModel, table=True):
    """One event. `time` is seconds since the epoch, `data` a JSON object."""

    __tablename__ = "event"

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    time: float
    kind: str
    subject: str
    message: str = Field(sa_column=Column(Text, nullable=False))
    data: str = Field(sa_column=Column(Text, nullable=False))
