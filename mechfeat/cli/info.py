"""``mechfeat info``: what is installed, and what works."""

import importlib
import importlib.metadata
import platform

import torch

import mechfeat

_CORE = ("torch", "transformer-lens", "einops", "jaxtyping", "numpy", "plotly", "safetensors", "scikit-learn", "scipy", "tqdm")
_OPTIONAL = (
    ("TransformerLens models", "transformer_lens", "pip install 'transformer-lens>=4,<5'"),
    ("out-of-core kernels", "zarr", "pip install 'mechfeat[store]'"),
    ("Hugging Face data sets", "datasets", "pip install 'mechfeat[data]'"),
    ("fused CUDA kernels", "triton", "comes with CUDA builds of torch"),
)


def info() -> str:
    """Versions, devices, and which optional parts work and why not.

    Returns:
        Text of several lines.
    """
    lines = [
        f"mechfeat {mechfeat.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "",
        "packages",
    ]
    for name in _CORE:
        try:
            lines.append(f"  {name:18s} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"  {name:18s} missing: pip install {name}")
    lines += ["", "devices", f"  cpu                {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    if torch.cuda.is_available():
        lines += [f"  cuda:{i}             {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("  cuda               none" + ("" if torch.version.cuda else " (this torch is a CPU build)"))
    lines += ["", "optional parts"]
    lines += [f"  {what:24s} {_works(module, fix)}" for what, module, fix in _OPTIONAL]
    broken = _torchvision()
    if broken:
        lines += ["", broken]
    return "\n".join(lines)


def _works(module: str, fix: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"no: {error}. {fix}"
    except (RuntimeError, OSError) as error:  # builds that do not fit each other fail in ways of their own
        return f"no: {module} is installed and does not load: {str(error).splitlines()[0]}"
    return f"yes ({importlib.metadata.version(module.replace('_', '-'))})"


def _torchvision() -> str:
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return ""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        return (
            f"torchvision is installed and does not load ({str(error).splitlines()[0]}). transformers and TransformerLens fail with it. "
            "Install torch and torchvision from the same build, or uninstall torchvision: mechfeat does not need it."
        )
    return ""
