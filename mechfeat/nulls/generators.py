"""Where the random numbers of a null come from."""

import torch

from mechfeat.errors import DtypeError


def as_generator(generator: object) -> torch.Generator:
    """The argument, once it is known to be a generator.

    Args:
        generator: What the caller gave.

    Returns:
        The same object.

    Raises:
        DtypeError: It is something else. torch reads None as its global generator, which no seed of a finding
            describes.

    Example:
        >>> as_generator(torch.Generator().manual_seed(3)).initial_seed()
        3
    """
    if not isinstance(generator, torch.Generator):
        raise DtypeError(
            f"generator is a {type(generator).__name__}, and a null needs a torch.Generator, so that its draws can be "
            "repeated. `torch.Generator().manual_seed(0)` makes one."
        )
    return generator


def permutations(n_draws: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Independent uniform permutations of ``0 .. n-1``.

    Args:
        n_draws: How many.
        n: Length of each.
        generator: Source of the draws.

    Returns:
        Indices ``[draw position]`` on the generator's device.

    Example:
        >>> permutations(2, 3, torch.Generator().manual_seed(0)).sort(-1).values
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    # Sorting float64 keys draws every row at once; two of n keys tie with probability below n²/2⁵⁴, which biases
    # nothing.
    keys = torch.rand(n_draws, n, generator=generator, device=generator.device, dtype=torch.float64)
    return keys.argsort(-1)
