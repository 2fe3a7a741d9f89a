"""The package as a whole: what it exports, what importing it costs, which way imports point."""

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mechfeat
from tests import peers

HEAVY = ("transformer_lens", "transformers", "datasets", "pandas", "plotly", "sklearn", "scipy", "zarr", "triton")
PACKAGES = [m.name for m in pkgutil.iter_modules(mechfeat.__path__, "mechfeat.") if m.ispkg]


def test_top_level_names():
    assert sorted(mechfeat.__all__) == [
        "Ablate",
        "ActivationCache",
        "Feature",
        "FeatureSet",
        "Finding",
        "HookedModel",
        "Patch",
        "ProjectOut",
        "Replace",
        "Samples",
        "Scale",
        "Steer",
        "Weights",
        "__version__",
        "bench",
        "circuits",
        "data",
        "errors",
        "evidence",
        "features",
        "hooks",
        "kernels",
        "models",
        "ntk",
        "nulls",
        "plots",
        "point",
        "probes",
        "report",
        "superposition",
    ]
    assert dir(mechfeat) == sorted(mechfeat.__all__)
    for name in mechfeat.__all__:
        assert getattr(mechfeat, name) is not None


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError) as error:
        _ = mechfeat.nothing
    assert str(error.value) == "module 'mechfeat' has no attribute 'nothing'"


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_what_the_package_exports(name):
    """``__all__`` lists every public name its ``__init__`` binds, and nothing else."""
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__).read_text())
    bound = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            submodules = {m.name for m in pkgutil.iter_modules(module.__path__)}
            bound |= {a.asname or a.name for a in node.names if not (node.module == name and a.name in submodules)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    listed = set(getattr(module, "__all__", ()))
    if listed:
        assert {n for n in bound if not n.startswith("_")} == listed
        assert all(getattr(module, n) is not None for n in listed)


def test_import_loads_nothing_heavy():
    code = f"import sys, mechfeat; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_costs_at_most_three_tenths_of_a_second_over_torch():
    code = "import time, torch; t = time.process_time(); import mechfeat; print(time.process_time() - t)"
    runs = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(runs) <= 0.3


def test_core_imports_with_the_heavy_packages_blocked():
    code = (
        "import sys\n"
        f"for m in {('transformer_lens', 'transformers', 'datasets', 'pandas', 'torchvision', 'timm')!r}: sys.modules[m] = None\n"
        "import torch, mechfeat as mf\n"
        "net = mf.models.DigitsCNN()\n"
        "x = torch.rand(2, 1, 8, 8)\n"
        "mf.HookedModel(net).run_with_cache(x)\n"
        "print(mf.ntk.empirical_ntk(net, x, outputs='trace').proved)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("name", ["transformer_lens", "transformers"])
def test_block_imports_hides_what_is_installed(name):
    assert (importlib.util.find_spec(name) is None) == peers.blocked()
    if peers.blocked():
        with pytest.raises(ModuleNotFoundError, match=f"^No module named '{name}'$"):
            importlib.import_module(name)


def test_typing_marker_is_shipped():
    assert (Path(mechfeat.__path__[0]) / "py.typed").exists()
