"""What this machine does in a second: measured once for a process, in a fraction of one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from mechfeat.kernels.products import SMALLEST, product


@dataclass(frozen=True)
class Machine:
    """Rates of one device, dtype and number of threads.

    Attributes:
        products: Multiply-adds a second of a large matrix product.
        strided: The same, of factors that are small or not laid out row by row.
        cached: Bytes a second of element-wise work on what is in the cache, read and written.
        memory: Bytes a second of element-wise work on what is not.
        call: Seconds of a call of torch on nearly nothing.
    """

    products: float
    strided: float
    cached: float
    memory: float
    call: float

    def product(
        self, rows: int | float, inner: int | float, columns: int | float, itemsize: int, many: int = 1, plain: bool = True
    ) -> float:
        """Predicted seconds of matrix products of one shape.

        Args:
            rows: Rows of the left factor.
            inner: Length of the sums.
            columns: Columns of the right factor.
            itemsize: Bytes a number.
            many: How many products one call does.
            plain: Both factors are laid out row by row.

        Returns:
            Seconds.
        """
        if not many:
            return 0.0
        work = rows * inner * columns
        # Blocks of the processor's registers and of the library's panels are filled up: thin products pay for what they do not use.
        full = _up(rows, 8) * _up(inner, 4) * _up(columns, 16)
        moved = (rows * inner + inner * columns + 2 * rows * columns) * itemsize
        rate = self.products if plain and work >= SMALLEST else self.strided
        each = 0.1 * self.call if many > 1 else 0.0
        return many * (max(work, full) / rate + moved / self.cached + each) + self.call

    def pass_over(self, entries: int | float, itemsize: int, reach: int | float = 2) -> float:
        """Predicted seconds of element-wise work.

        Args:
            entries: Numbers touched.
            itemsize: Bytes a number.
            reach: How often each is read or written.

        Returns:
            Seconds.
        """
        size = entries * itemsize
        rate = self.cached if size <= 4 << 20 else self.memory
        return reach * size / rate + self.call


def _up(x: int | float, step: int) -> int | float:
    return -(-x // step) * step


@lru_cache(maxsize=16)
def machine(device: str, dtype: torch.dtype, threads: int) -> Machine:
    """Measure the rates, or remember them.

    Args:
        device: Device type.
        dtype: Dtype of the products.
        threads: Number of threads, part of what is remembered.

    Returns:
        The rates.

    Cost:
        A fraction of a second on a CPU, once a process.
    """
    a = torch.ones(512, 512, device=device, dtype=dtype)
    many = torch.ones(8, 192, 192, device=device, dtype=dtype)
    small, large = (torch.ones(size // a.element_size(), device=device, dtype=dtype) for size in (1 << 20, 64 << 20))
    into = torch.empty_like(small), torch.empty_like(large)
    tiny = torch.ones(1, 1, device=device, dtype=dtype)
    return Machine(
        products=512**3 / _fastest(lambda: product(a, a), device, 8),
        strided=8 * 192**3 / _fastest(lambda: torch.bmm(many, many), device, 8),
        cached=2 * (1 << 20) / _fastest(lambda: torch.add(small, 1, out=into[0]), device, 20),
        memory=2 * (64 << 20) / _fastest(lambda: torch.add(large, 1, out=into[1]), device, 3),
        call=_fastest(lambda: tiny @ tiny, device, 50),
    )


def _fastest(run: Callable[[], object], device: str, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
