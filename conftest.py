"""The Triton kernels can neither be imported nor have their docstrings tested where there is no triton."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["mechfeat/kernels/triton/*"]
