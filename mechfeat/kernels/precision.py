"""Whether float32 products may be rounded to TF32, which is the caller's decision and never this library's."""

import torch


def tf32() -> bool:
    """Whether torch has been told that matrix products of float32 numbers may round to TF32 on a GPU.

    Returns:
        The answer; False by torch's own default.
    """
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch's switches of single backends were used, which the common one cannot express
        return torch.backends.cuda.matmul.fp32_precision == "tf32"
