"""A stream on disk: one safetensors file a batch, and a manifest that says what they hold.

A shard is written under another name and renamed when it is complete, so a shard that exists is whole, and a run that was cut short
goes on where it stopped. Before it goes on it is shown to be the same run: model, weights, names and options are compared with
the manifest, the input of each skipped batch with that of its shard, and the first shard is recorded again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.errors import FileFormatError, HookNameError, HookNotReachedError, NonFiniteError, OptionError, ResumeError, ShapeError
from mechfeat.features import Samples
from mechfeat.hooks.cache import ActivationCache, Positions
from mechfeat.hooks.stream import Session, batch_size, model_input, shown
from mechfeat.hooks.values import leaves

_FORMAT = "mechfeat shards/1"
_MANIFEST = "manifest.json"
_INPUTS = "::inputs"  # suffix of the tensor that says which input a row came from; no hook name holds two colons


@dataclass(frozen=True)
class Shards:
    """Reads what :meth:`HookedModel.stream_to_disk` wrote.

    Attributes:
        folder: Where the files are.
        manifest: What they hold: hook names with shape (of the first shard), dtype and axes, model, fingerprint of the weights, options.
        files: The shards, in order of the batches.
        counts: Number of inputs in each.
    """

    folder: Path
    manifest: Mapping[str, Any]
    files: tuple[Path, ...]
    counts: tuple[int, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "Shards":
        """Open a folder, of a finished run or of one that was cut short.

        Args:
            folder: Where the files are.

        Returns:
            The reader. Tensors are read when they are asked for.

        Raises:
            FileFormatError: The folder has no manifest of this format, or a shard is damaged or of another run.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        files = sorted(folder.glob("shard-*.safetensors"))
        headers = [_header(file) for file in files]
        for k, (file, header) in enumerate(zip(files, headers)):
            if header["run"] != manifest["run"] or file.name != _shard(k):
                raise FileFormatError(f"{str(file)!r} does not belong to the run of the manifest, or a shard before it is missing.")
        return cls(folder, manifest, tuple(files), tuple(int(header["n"]) for header in headers))

    @property
    def complete(self) -> bool:
        """Whether the run came to the end of its loader."""
        return bool(self.manifest["complete"])

    @property
    def names(self) -> tuple[str, ...]:
        """Hook names."""
        return tuple(self.manifest["points"])

    @property
    def n_inputs(self) -> int:
        """Number of inputs, all shards together."""
        return sum(self.counts)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """One shard after the other.

        Yields:
            Hook name → tensor.
        """
        for file in self.files:
            yield {name: value for name, value in _load(file).items() if not name.endswith(_INPUTS)}

    def __getitem__(self, name: str) -> Tensor:
        """All batches of one hook point, one after the other along the sample axis.

        Args:
            name: Hook name.

        Returns:
            The activations, on the CPU.

        Raises:
            HookNameError: No such name was streamed.
            ShapeError: Batches differ in another axis than the sample, as texts of several lengths do.
        """
        self._check(name)
        parts = [_load(file, [name])[name] for file in self.files]
        if self.manifest["positions"] is not None:
            return torch.cat(parts)
        axes = self.manifest["points"][name]["axes"]
        axis = axes.index("sample") if "sample" in axes else 0
        rest = {(*p.shape[:axis], *p.shape[axis + 1 :]) for p in parts}
        if len(rest) > 1:
            raise ShapeError(
                f"The batches of {name!r} have the shapes {sorted(rest)} a sample, which do not join. Go through them one by one."
            )
        return torch.cat(parts, axis)

    def samples(self, name: str) -> Samples:
        """All batches of one hook point as a table, inputs counted through.

        Args:
            name: Hook name.

        Returns:
            What ``cache.samples(name, positions=...)`` of one large batch would give.

        Raises:
            HookNameError: No such name was streamed.
            OptionError: The run stored whole activations, without ``positions``.
        """
        self._check(name)
        if self.manifest["positions"] is None:
            raise OptionError("positions", None, ("all", "mean", "an index", "a function"))
        parts = [_load(file, [name, name + _INPUTS]) for file in self.files]
        starts = [sum(self.counts[:k]) for k in range(len(parts))]
        origin = torch.cat([part[name + _INPUTS] + start for part, start in zip(parts, starts)])
        axes = tuple(self.manifest["points"][name]["axes"])
        return Samples(torch.cat([part[name] for part in parts]), origin, name, self.n_inputs, axes)

    def _check(self, name: str) -> None:
        if name not in self.names:
            error = HookNameError(name, self.names)
            error.args = (error.args[0].replace("in this model", "in this folder").replace("`model.hook_names()`", "`shards.names`"),)
            raise error


def kept(cache: ActivationCache, positions: Positions | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is written of one batch.

    Args:
        cache: The batch.
        positions: As in ``cache.samples``; None for the whole activation.
        dtype: Floating-point values are converted to it; None leaves them.

    Returns:
        Hook name → tensor, and with ``positions`` the input that each row came from.

    Raises:
        NonFiniteError: A finite value is beyond the range of ``dtype``.
    """
    found: dict[str, Tensor] = {}
    for name in cache:
        if positions is None:
            value = cache[name]
        else:
            samples = cache.samples(name, positions)
            value = samples.values
            found[name + _INPUTS] = samples.inputs
        if dtype is not None and value.is_floating_point():
            small = value.to(dtype)
            if bool((value.isfinite() & ~small.isfinite()).any()):
                raise NonFiniteError(
                    f"{name!r} holds values up to {float(value[value.isfinite()].abs().max()):.3g}, beyond the range of {dtype} "
                    f"(at most {torch.finfo(dtype).max:.3g}). torch.bfloat16 has the range of float32 in the same space."
                )
            value = small
        found[name] = value
    return found


def write(
    module: nn.Module,
    session: Session,
    loader: Iterable[Any],
    folder: str | Path,
    request: object,
    *,
    positions: Positions | None,
    dtype: torch.dtype | None,
    inputs: Callable[[Any], Any] | None,
    progress: bool,
) -> Shards:
    """Stream to disk, or go on with a stream that was cut short.

    Args:
        module: The model.
        session: Records; not yet open.
        loader: Yields batches, the same ones in the same order each time.
        folder: Where to write.
        request: The names asked for, as text.
        positions: As in ``cache.samples``; None for whole activations.
        dtype: Floating-point values are converted to it.
        inputs: From a batch to the model's input.
        progress: Show a bar.

    Returns:
        The reader.

    Raises:
        ResumeError: The folder holds another run.
        HookNotReachedError: A batch did not reach a hook point that the first one reached.
        ShapeError: A batch reached a hook point that the first one did not.
        FileFormatError: The folder holds shards without manifest.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "model": f"{type(module).__module__}.{type(module).__qualname__}",
        "weights": weights_fingerprint(module),
        "training": module.training,
        "names": request,
        "positions": _text(positions),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }
    manifest["run"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    manifest.update(points={}, complete=False)
    if (folder / _MANIFEST).exists():
        manifest = _resumed(folder, manifest)
    elif any(folder.glob("shard-*.safetensors")):
        raise FileFormatError(f"{str(folder)!r} holds shards without manifest, so what they hold is not known. Choose another folder.")
    for rest in folder.glob("*.partial"):
        rest.unlink()
    with session.opened(), torch.no_grad():
        k, begun = -1, False
        for k, batch in enumerate(shown(loader, progress)):
            x = model_input(batch, inputs)
            path, mark = folder / _shard(k), _input_fingerprint(x)
            exists = path.exists()
            if exists:
                header = _header(path)
                if header["run"] != manifest["run"]:
                    raise ResumeError(folder, {"run of " + path.name: (header["run"][:12], manifest["run"][:12])})
                if header["input"] != mark:
                    raise ResumeError(folder, {f"input of batch {k}": (header["input"][:12], mark[:12])})
                if k:
                    continue
            cache = session(x)
            values = {name: v.cpu().contiguous() for name, v in kept(cache, positions, dtype).items()}
            if exists:
                _check_same(folder, _load(path), values)
                continue
            if not manifest["points"]:
                manifest["points"] = {
                    name: {
                        "shape": list(values[name].shape),
                        "dtype": str(values[name].dtype).removeprefix("torch."),
                        "axes": cache.axes(name),
                    }
                    for name in cache
                }
            if not begun:
                _write_manifest(folder, manifest)
                begun = True
            _check_names(k, list(cache), list(manifest["points"]))
            _save(path, values, {"format": _FORMAT, "run": manifest["run"], "input": mark, "n": str(batch_size(cache))})
    left = len(list(folder.glob("shard-*.safetensors"))) - (k + 1)
    if left:
        raise ResumeError(folder, {"number of batches": (k + 1 + left, k + 1)})
    _write_manifest(folder, {**manifest, "complete": True})
    return Shards.open(folder)


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers: names, shapes, dtypes and values.

    Args:
        module: The model.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        digest.update(name.encode())
        _digest(digest, value)
    return digest.hexdigest()


def _digest(digest: Any, value: Tensor) -> None:
    value = value.detach()
    digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _input_fingerprint(x: Any) -> str:
    digest = hashlib.sha256()
    for place, part in leaves(x, "in"):
        digest.update(place.encode())
        if isinstance(part, Tensor):
            _digest(digest, part)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _text(positions: Positions | None) -> Any:
    if callable(positions):
        return f"function {getattr(positions, '__qualname__', type(positions).__qualname__)}"
    return list(positions) if isinstance(positions, tuple) else positions


def _shard(k: int) -> str:
    return f"shard-{k:06d}.safetensors"


def _save(path: Path, values: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    own = {name: value.clone() for name, value in values.items()}  # one storage each, as the format wants it
    save_file(own, partial, metadata=metadata)
    partial.replace(path)


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise FileFormatError(
            f"{str(path)!r} is not a readable safetensors file: {error}. Delete it, and run again to write it anew."
        ) from error
    if header.get("format") != _FORMAT:
        raise FileFormatError(f"{str(path)!r} has format {header.get('format')!r}, and this version reads {_FORMAT!r}.")
    return header


def _load(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(f"{str(folder)!r} has no {_MANIFEST}, so it was not written by `model.stream_to_disk`.") from error
    except ValueError as error:
        raise FileFormatError(f"{str(folder / _MANIFEST)!r} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise FileFormatError(f"{str(folder / _MANIFEST)!r} has format {found!r}, and this version reads {_FORMAT!r}.")
    return manifest


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    partial = folder / (_MANIFEST + ".partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / _MANIFEST)


def _resumed(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    before = _read_manifest(folder)
    asked = ("model", "weights", "training", "names", "positions", "dtype")
    differ = {key: (before.get(key), manifest[key]) for key in asked if before.get(key) != manifest[key]}
    if differ:
        raise ResumeError(folder, differ)
    return {**manifest, "points": before["points"]}


def _check_same(folder: Path, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    for name in dict.fromkeys([*before, *now]):
        a, b = before.get(name), now.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            raise ResumeError(folder, {f"{name} of batch 0": (_kind(a), _kind(b))})
        # Another machine or thread count rounds otherwise; half the digits must agree on the scale of the tensor.
        tolerance = torch.finfo(a.dtype).eps ** 0.5 if a.is_floating_point() or a.is_complex() else 0.0
        scale = float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) if tolerance and a.numel() else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            raise ResumeError(folder, {f"{name} of batch 0": ("the stored values", "other values (an edit, or another function?)")})


def _kind(value: Tensor | None) -> str:
    return "absent" if value is None else f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _check_names(k: int, found: list[str], first: list[str]) -> None:
    missing = [name for name in first if name not in found]
    if missing:
        raise HookNotReachedError(missing, found)
    new = [name for name in found if name not in first]
    if new:
        raise ShapeError(
            f"Batch {k} reached {', '.join(map(repr, new))}, which the first batch did not reach, so shards would differ in hook points. "
            "Ask for literal names, or stream such batches to a folder of their own."
        )
