"""ROS parameters declared from a frozen dataclass: its defaults are the only ones."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from sld_core.types import SldError

T = TypeVar("T")
OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def parameter(default, description: str, minimum=None, maximum=None):
    """A dataclass field that becomes a ROS parameter with this description, and, if it is a number,
    this range."""
    return dataclasses.field(
        default=default, metadata={"description": description, "range": (minimum, maximum)}
    )


def declare(node: Node, kind: type[T]) -> T:
    """Declare every field of `kind` as a read-only parameter and return the values given at start.

    Raises SldError for a wrong type or a value out of range. An unknown parameter is a warning: it
    may be misspelt, or a launch file gives it to all of its nodes."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # rclpy has no public list of overrides, and says nothing of a misspelt one
    unknown = [
        name
        for name in sorted(node._parameter_overrides)
        if name not in fields and not name.startswith(OF_RCLPY)
    ]
    if unknown:
        node.get_logger().warning(
            f"unknown parameter {', '.join(unknown)} ignored; known are {', '.join(fields)}"
        )
    values = {}
    for name, field in fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        try:
            value = node.declare_parameter(name, default, _descriptor(field)).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            given = node._parameter_overrides[name].value
            raise SldError(f"parameter {name} = {given!r}: expected {_expected(field)}") from error
        values[name] = tuple(value) if isinstance(field.default, tuple) else value
    return kind(**values)


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=field.metadata["description"], read_only=True)
    low, high = field.metadata["range"]
    if low is not None and isinstance(field.default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(low), to_value=float(high))
        ]
    elif low is not None:
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


def _expected(field: dataclasses.Field) -> str:
    low, high = field.metadata["range"]
    limits = "" if low is None else f" from {low} to {high}"
    return f"{type(field.default).__name__}{limits}, such as {field.default!r}"
