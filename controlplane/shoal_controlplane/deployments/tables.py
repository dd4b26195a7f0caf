"""Tables of deployments, their assignment to devices, goals of devices, and measurements."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text
from sqlmodel import Field, SQLModel


class DeploymentRow(SQLModel, table=True):
    """One deployment. `replicas` null means all devices that fit; `selector`, `options` and
    `shapes` are JSON objects; `created_at` is seconds since the epoch; `shards` null means that
    the model is not cut, 0 that the planner chooses the number of stages; `offload` is a JSON
    list of targets."""

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
    require_accelerator: bool = False
    shards: int | None = None
    objective: str = Field(default="throughput", max_length=16)
    shapes: str = Field(default="{}", sa_column=Column(Text, nullable=False, server_default="{}"))
    offload: str = Field(default="[]", sa_column=Column(Text, nullable=False, server_default="[]"))


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


class MeasuredRow(SQLModel, table=True):
    """How a model file ran on a type of board under a runtime. `profile` is a JSON object,
    `accelerated` null where the device did not tell, `updated_at` in seconds since the epoch."""

    __tablename__ = "measured"

    digest: str = Field(primary_key=True, max_length=71)
    board: str = Field(primary_key=True, max_length=257)
    runtime: str = Field(primary_key=True, max_length=128)
    profile: str = Field(sa_column=Column(Text, nullable=False))
    memory_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    accelerated: float | None = None
    updated_at: float
