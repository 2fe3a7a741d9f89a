"""Equality of stored values, which ``==`` cannot tell because tensors have no single truth value."""

import dataclasses
import math
from collections.abc import Mapping

import torch


def assert_same(found, expected, where="value"):
    """Raise unless two values agree bit for bit, types and dtypes included."""
    if type(found) is not type(expected):
        raise AssertionError(f"{where}: {type(found).__name__} is not {type(expected).__name__}")
    if isinstance(expected, torch.Tensor):
        if found.dtype != expected.dtype or found.shape != expected.shape or not torch.equal(
            found.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0)
        ):  # fmt: skip
            raise AssertionError(f"{where}: {found} is not {expected}")
    elif dataclasses.is_dataclass(expected):
        for f in dataclasses.fields(expected):
            assert_same(getattr(found, f.name), getattr(expected, f.name), f"{where}.{f.name}")
    elif isinstance(expected, Mapping):
        if list(found) != list(expected):
            raise AssertionError(f"{where}: keys {list(found)} are not {list(expected)}")
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            raise AssertionError(f"{where}: length {len(found)} is not {len(expected)}")
        for i, (a, b) in enumerate(zip(found, expected)):
            assert_same(a, b, f"{where}.{i}")
    elif not (found == expected or (isinstance(expected, float) and math.isnan(found) and math.isnan(expected))):
        raise AssertionError(f"{where}: {found!r} is not {expected!r}")
