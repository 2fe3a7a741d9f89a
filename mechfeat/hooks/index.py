"""Under which hook names the activations of a run are found."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mechfeat.errors import AmbiguousCallError, HookNameError, PortError
from mechfeat.hooks.names import HookName, numbered


class CacheIndex:
    """Under which hook names the activations of a run are found. Runs that record the same share it.

    A hook point that fired once is listed without call index, one that fired more often as ``relu#0``, ``relu#1``, ....

    Args:
        names: Names of the activations, call included, in the order they passed.
        fired: How often each path and side fired, recorded or not.
        alias: Further names of modules.
    """

    def __init__(
        self,
        names: Sequence[HookName],
        fired: Mapping[tuple[str, str], int] = MappingProxyType({}),
        alias: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.names = tuple(names)
        self.calls: dict[tuple[str, str], int] = {}
        for name in self.names:
            self.calls[name.path, name.port] = self.calls.get((name.path, name.port), 0) + 1
        # Calls that were not recorded count as well: "relu" is ambiguous where relu#0 alone was asked for and relu fires twice.
        self._fired = {(n.path, n.port): max(self.calls[n.path, n.port], fired.get((n.path, n.side), 0)) for n in self.names}
        self.places = {str(shown): i for i, (_, shown) in enumerate(numbered(self.names, self._fired))}
        self._alias = alias

    def path(self, path: str) -> str:
        """The path under which a module is listed.

        Args:
            path: That path or another of the same module.

        Returns:
            The path.
        """
        return self._alias.get(path, path)

    def find(self, text: str) -> str:
        """The name under which an activation is listed.

        Args:
            text: A hook name that addresses it.

        Returns:
            The name.

        Raises:
            HookNameError: There is none.
            PortError: It addresses several.
            AmbiguousCallError: Several calls were recorded.
        """
        if text in self.places:
            return text
        name = HookName.parse(text)
        name = name._replace(path=self.path(name.path))
        ports = [port for path, port in self.calls if path == name.path and (port == name.port or port.startswith(name.port + "."))]
        if not ports:
            raise self._absent(text)
        if len(ports) > 1:
            raise PortError(text, f"it holds {len(ports)} tensors", [str(HookName(name.path, p)) for p in ports])
        fired = self._fired[name.path, ports[0]]
        if name.call is None and fired > 1:
            raise AmbiguousCallError(str(HookName(name.path, ports[0])), fired)
        key = str(HookName(name.path, ports[0], name.call if fired > 1 or name.call else None))
        if key not in self.places:
            raise self._absent(text)
        return key

    def _absent(self, text: str) -> HookNameError:
        error = HookNameError(text, list(self.places))
        error.args = (error.args[0].replace("in this model", "recorded in this cache").replace("`model.hook_names()`", "`list(cache)`"),)
        return error
