"""Settings that every test shares: float64, a seed, a device, and hypothesis without deadlines."""

import os

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests import peers

settings.register_profile("mechfeat", deadline=None, max_examples=50)
settings.load_profile("mechfeat")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device on which the suite makes its tensors")
    parser.addoption("--block-imports", action="store_true", help="run as if transformer_lens and other heavy packages were not installed")


def pytest_configure(config):
    if config.getoption("--block-imports"):
        peers.block()
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # workers share the cores
    if config.getoption("--device") == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def defaults(device):
    """float64 on the device asked for, from seed 0; all restored afterwards."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    if device.type == "cpu":
        yield
    else:  # a default device slows every call a little, so the CPU run goes without
        with device:
            yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def unchecked():
    """Shape checking off, so that a wrong argument reaches the library's own message."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
