"""What a statistic looks like where there is nothing to find: shuffled weights, permuted labels, random directions.

A null keeps everything about the data except the structure under test. Each function here says what it keeps and what
it destroys. Randomness enters as a ``torch.Generator`` alone; draws are made on the generator's device, so that a CPU
generator gives the same null on every device.
"""

from mechfeat.nulls.directions import random_directions
from mechfeat.nulls.labels import permuted_labels
from mechfeat.nulls.weights import shuffled_weights

__all__ = ["permuted_labels", "random_directions", "shuffled_weights"]
