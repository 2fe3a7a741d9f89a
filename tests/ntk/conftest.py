"""Every test starts with no proof remembered and ends with the rules it found."""

import pytest
import torch

from mechfeat.ntk import PROVED
from mechfeat.ntk.rules import registry


@pytest.fixture(autouse=True)
def fresh():
    rules, threads = dict(registry._RULES), torch.get_num_threads()
    PROVED.clear()
    torch.set_num_threads(1)  # the models are tiny, and waking threads costs more than the work
    yield
    torch.set_num_threads(threads)
    PROVED.clear()
    registry._RULES.clear()
    registry._RULES.update(rules)
