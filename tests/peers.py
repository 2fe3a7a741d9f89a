"""Libraries that some tests compare with or build models from, and that the core does without."""

import importlib
import sys
from importlib.machinery import PathFinder

import pytest

BLOCKED = ("transformer_lens", "transformers", "datasets", "pandas", "torchvision", "timm")


class Blocking:
    """Takes the place of the path finder: these packages are as if they were not installed."""

    def find_spec(self, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in BLOCKED else PathFinder.find_spec(fullname, path, target)

    def find_distributions(self, *args, **kwargs):
        return PathFinder.find_distributions(*args, **kwargs)

    def invalidate_caches(self):
        PathFinder.invalidate_caches()


def block():
    """From here on none of them can be imported.

    Raises:
        UsageError: One is imported already.
    """
    early = [name for name in BLOCKED if name in sys.modules]
    if early:
        raise pytest.UsageError(f"--block-imports comes too late: {', '.join(early)} are imported already")
    sys.meta_path[sys.meta_path.index(PathFinder)] = Blocking()


def blocked():
    """Whether ``--block-imports`` is in force."""
    return any(isinstance(finder, Blocking) for finder in sys.meta_path)


def needs(name):
    """A library that a test is about. The test is skipped where ``--block-imports`` takes it away; elsewhere its absence is an error."""
    if blocked() and name.partition(".")[0] in BLOCKED:
        pytest.skip(f"is about {name.partition('.')[0]}, which --block-imports takes away")
    return importlib.import_module(name)
