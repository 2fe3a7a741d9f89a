"""The contractions as Triton kernels for CUDA, with the names and arguments of their torch references.

:mod:`mechfeat.kernels.dispatch` imports this package when factors are on a CUDA device and counting says that it pays; nothing else
does, so that the library neither needs nor loads triton. With ``TRITON_INTERPRET=1`` in the environment before triton is imported the
kernels run on the CPU, slowly, which is how they are tested.
"""

from mechfeat.kernels.triton.gram import gram
from mechfeat.kernels.triton.mixed import mixed
from mechfeat.kernels.triton.single import add_singles

__all__ = ["add_singles", "gram", "mixed"]
