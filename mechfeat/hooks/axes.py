"""Names of the axes of an activation.

Knowing which axis holds the channels is what lets probes, edits and superposition metrics treat convolutions, attention and
MLPs alike. An axis that cannot be told is called ``axis1``, ``axis2``, ... rather than guessed; ``HookedModel(net,
axes={...})`` names it.
"""

from torch import nn

_SPACE = {3: ("pos",), 4: ("height", "width"), 5: ("depth", "height", "width")}
_CHANNEL_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Upsample,
)
_ATTENTION = {
    "q": ("sample", "head", "pos", "channel"),
    "k": ("sample", "head", "pos", "channel"),
    "v": ("sample", "head", "pos", "channel"),
    "z": ("sample", "head", "pos", "channel"),
    "scores": ("sample", "head", "query", "key"),
    "pattern": ("sample", "head", "query", "key"),
    "result": ("sample", "pos", "head", "channel"),
}
_CHANNEL_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
_SEQUENCES = (
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.MultiheadAttention,
    nn.RNNBase,
)


class AxisNamer:
    """Names axes for the hook points of one model.

    Args:
        modules: Path and module, ancestors before descendants.
        given: Axis names set by the user, by hook name without call.
    """

    def __init__(self, modules: dict[str, nn.Module], given: dict[str, tuple[str, ...]]) -> None:
        self._modules, self._given = modules, given
        kinds = {type(m) for m in modules.values()}
        self._has_conv = {n: any(issubclass(k, kind) for k in kinds) for n, kind in ((3, nn.Conv1d), (4, nn.Conv2d), (5, nn.Conv3d))}
        self._sequence_first = [p for p, m in modules.items() if isinstance(m, _SEQUENCES) and not _batch_first(m)]

    def __call__(self, path: str, port: str, ndim: int) -> tuple[str, ...]:
        """Axis names at a hook point.

        Args:
            path: Module path or point name.
            port: Port, place included.
            ndim: Number of axes found there.

        Returns:
            As many names as axes.
        """
        for key in (f"{path}:{port}", path):
            if key in self._given and len(self._given[key]) == ndim:
                return self._given[key]
        if port in _ATTENTION:
            names = _ATTENTION[port]
            return (
                names
                if ndim == 4
                else tuple(n for n in names if n != "head")
                if ndim == 3
                else ("sample", *(f"axis{i}" for i in range(1, ndim)))
            )
        module = self._modules.get(path)
        unknown = ("sample", *(f"axis{i}" for i in range(1, ndim)))[:ndim]
        if ndim <= 1:
            return unknown
        if isinstance(module, nn.MultiheadAttention) and port == "out.1":
            return ("sample", "query", "key") if ndim == 3 else ("sample", "head", "query", "key")
        if isinstance(module, _CHANNEL_FIRST) and ndim >= 3:
            return ("sample", "channel", *_SPACE[ndim]) if ndim in _SPACE else unknown
        if ndim == 2:
            return ("sample", "channel")
        if ndim == 3 and (module is None or not self._has_conv[3] or isinstance(module, (*_CHANNEL_LAST, *_SEQUENCES)) or _last(module)):
            first = any(path == p or path.startswith(p + ".") or not p for p in self._sequence_first)
            return ("pos", "sample", "channel") if first else ("sample", "pos", "channel")
        if isinstance(module, _CHANNEL_LAST) or _last(module):
            return ("sample", *(f"pos{i}" for i in range(1, ndim - 1)), "channel")
        if ndim in (4, 5) and self._has_conv[ndim] and not isinstance(module, nn.Softmax) and "att" not in path.lower():
            return ("sample", "channel", *_SPACE[ndim])
        return unknown


def _batch_first(module: nn.Module) -> bool:
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        return all(_batch_first(m) for m in module.modules() if isinstance(m, nn.MultiheadAttention))
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return _batch_first(module.self_attn)
    return bool(getattr(module, "batch_first", True))


def _last(module: nn.Module | None) -> bool:
    # GPT-2's projection in transformers is called Conv1D and is a linear layer with transposed weight.
    return type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)
