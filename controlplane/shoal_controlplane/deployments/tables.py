"""Tables of deployments, their assignment to devices, and the goals of devices."""

from __future__ import annotations

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel


class DeploymentRow(SQLModel, table=True):
    """One deployment. `replicas` null means all devices that fit; `selector` and `options` are
    JSON objects; `created_at` is seconds since the epoch."""

    __tablename__ = "deployment"

    name: str = Field(primary_key=True, max_length=64)
    model: str = Field(max_length=64, index=True)
    version: str = Field(max_length=64)
    replicas: int | None = None
    selector: str = Field(sa_column=Column(Text, nullable=False))
    slo_ms: float | None = None
    max_batch: int | None = None
    options: str = Field(sa_column=Column(Text, nullable=False))
    created_at: float
    revision: int
    completed: bool = False


class AssignmentRow(SQLModel, table=True):
    """A device that shall serve a deployment."""

    __tablename__ = "assignment"

    deployment: str = Field(
        primary_key=True, max_length=64, foreign_key="deployment.name", ondelete="CASCADE"
    )
    device: str = Field(primary_key=True, max_length=64)


class GoalRow(SQLModel, table=True):
    """The goal document of a device, as it was or will be published."""

    __tablename__ = "goal"

    device: str = Field(primary_key=True, max_length=64)
    document: str = Field(sa_column=Column(Text, nullable=False))
