"""Pages are run as a reader runs them: torch's own defaults, in an empty folder, with nothing but the library's own checks."""

import pytest
import torch

from mechfeat.ntk.rules import registry


@pytest.fixture(autouse=True)
def defaults(tmp_path, monkeypatch):
    """float32 from seed 0, in place of the suite's float64; files that a page writes go to a folder of its own; its rules end with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    dtype, rules = torch.get_default_dtype(), dict(registry._RULES)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    yield
    registry._RULES.clear()
    registry._RULES.update(rules)
    torch.set_default_dtype(dtype)
