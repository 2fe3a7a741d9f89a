"""No silent error on random models: each kernel is the literal one."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.ntk import NTKOperator, empirical_ntk
from tests.ntk.programs import HEADS, POSITIONS, STEPS, Model, Program, programs
from tests.ntk.test_exact import OUTPUTS, reduced


def assert_no_silent_error(program, outputs, two, method, n=POSITIONS):
    """The kernel as a user asks for it, against the literal one; by custom as many samples as positions, which rules may confuse."""
    net = Model(program)
    x1, x2 = net.batch(n), net.batch(2) if two else None
    want = reduced(sum(oracle.empirical_ntk(net, x1, x2).values()), outputs)
    # Proofs are remembered from one program to the next, so two programs taken for one would show; the second call rests on the first.
    for _ in range(2):
        found = empirical_ntk(net, x1, x2, outputs=outputs, method=method).kernel
        gap, scale = float((found - want).abs().max()), float(want.abs().max())
        if not gap <= 1e-11 * scale:  # up to nine layers deep, with softmax and norms
            raise AssertionError(f"largest difference {gap:.2e} at scale {scale:.2e}")


@pytest.mark.parametrize("n_models", [60, pytest.param(300, marks=pytest.mark.full)])
def test_random_models(n_models):
    @settings(max_examples=n_models, suppress_health_check=list(HealthCheck))
    @given(programs(), st.sampled_from(OUTPUTS), st.booleans(), st.sampled_from(["auto", "auto", "block", "gram"]), st.integers(1, 4))
    def check(program, outputs, two, method, n):
        assert_no_silent_error(program, outputs, two, method, n)

    check()


@pytest.mark.parametrize("n_models", [20, pytest.param(200, marks=pytest.mark.full)])
def test_operator_on_random_models(n_models):
    @settings(max_examples=n_models, suppress_health_check=list(HealthCheck))
    @given(programs())
    def check(program):
        net = Model(program)
        x = net.batch(3)
        want = sum(oracle.empirical_ntk(net, x).values()).flatten(0, 1).flatten(1)
        v = torch.randn(len(want))
        gap = float((NTKOperator(net, x) @ v - want @ v).abs().max())
        assert gap <= 1e-11 * float(want.abs().max()) * len(want)

    check()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_twice(step):
    # what random draws may leave out: each step with its parameters met again
    for tokens in (False, True):
        program = Program(((step, 0), ("tanh", 0), (step, 0), (step, 1), ("residual", 1)), tokens, "linear", frozenset(), 1)
        for outputs in OUTPUTS:
            assert_no_silent_error(program, outputs, False, "auto")


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head):
    for tokens in (False, True):
        assert_no_silent_error(Program((("module", 0), ("tanh", 0)), tokens, head, frozenset(), 1), "full", True, "auto")
