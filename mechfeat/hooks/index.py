"""Under which hook names the activations of a run are found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from mechfeat.errors import AmbiguousCallError, HookNameError, OptionError, PortError
from mechfeat.hooks.names import HookName, Pattern, numbered, unknown_role


class CacheIndex:
    """Under which hook names the activations of a run are found. Runs that record the same share it.

    A hook point that fired once is listed without call index, one that fired more often as ``relu#0``, ``relu#1``, ....

    Args:
        names: Names of the activations, call included, in the order they passed.
        fired: How often each path and side fired, recorded or not.
        alias: Further names of modules.
        roles: Gives the roles of the model, asked when needed.
    """

    def __init__(
        self,
        names: Sequence[HookName],
        fired: Mapping[tuple[str, str], int] = MappingProxyType({}),
        alias: Mapping[str, str] = MappingProxyType({}),
        roles: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        self.names, self.fired = tuple(names), fired
        self.calls: dict[tuple[str, str], int] = {}
        for name in self.names:
            self.calls[name.path, name.port] = self.calls.get((name.path, name.port), 0) + 1
        # Calls that were not recorded count as well: "relu" is ambiguous where relu#0 alone was asked for and relu fires twice.
        self._fired = {(n.path, n.port): max(self.calls[n.path, n.port], fired.get((n.path, n.side), 0)) for n in self.names}
        self.places = {str(shown): i for i, (_, shown) in enumerate(numbered(self.names, self._fired))}
        self._alias, self._roles = alias, roles

    def path(self, path: str) -> str:
        """The path under which a module is listed.

        Args:
            path: That path or another of the same module.

        Returns:
            The path.
        """
        return self._alias.get(path, path)

    def find(self, key: str | tuple[str, int]) -> str:
        """The name under which an activation is listed.

        Args:
            key: A hook name that addresses it; or its role, with which of the role's hook points in the model.

        Returns:
            The name.

        Raises:
            HookNameError: There is none.
            PortError: It addresses several.
            AmbiguousCallError: Several calls were recorded.
        """
        if isinstance(key, tuple):
            return self._numbered(*key)
        if key in self.places:
            return key
        resolved = self._resolved(key)
        if resolved.members:
            return self._one(key, self._matching(resolved))
        name = HookName.parse(key)
        name = name._replace(path=self.path(name.path))
        ports = [port for path, port in self.calls if path == name.path and (port == name.port or port.startswith(name.port + "."))]
        if not ports:
            raise self._absent(key)
        if len(ports) > 1:
            raise PortError(key, f"it holds {len(ports)} tensors", [str(HookName(name.path, p)) for p in ports])
        fired = self._fired[name.path, ports[0]]
        if name.call is None and fired > 1:
            raise AmbiguousCallError(str(HookName(name.path, ports[0])), fired)
        shown = str(HookName(name.path, ports[0], name.call if fired > 1 or name.call else None))
        if shown not in self.places:
            raise self._absent(key)
        return shown

    def matching(self, request: str) -> list[str]:
        """The names that a role or a glob selects.

        Args:
            request: A role, a glob or a hook name.

        Returns:
            At least one name, in the order they passed.

        Raises:
            HookNameError: Nothing recorded fits, or the model has no such role.
        """
        found = self._matching(self._resolved(request))
        if not found:
            raise self._absent(request)
        return found

    def _resolved(self, text: str) -> Pattern:
        """A request, a role in it as the set of hook points it stands for."""
        pattern = Pattern.parse(text)
        if pattern.role is not None and all(path != pattern.path for path, _ in self.calls):  # a module may be called like a role
            roles = self._roles()
            if pattern.role not in roles:
                raise unknown_role(pattern, roles)
            return pattern.resolved(roles[pattern.role])
        return replace(pattern, path=self.path(pattern.path))

    def _matching(self, pattern: Pattern) -> list[str]:
        return [shown for shown, i in self.places.items() if pattern.selects(self.names[i])]

    def _one(self, text: str, found: Sequence[str]) -> str:
        if not found:
            raise self._absent(text)
        if len(found) > 1:
            raise PortError(text, f"{len(found)} recorded hook points play this role, which `cache.select` gives together", found)
        return found[0]

    def _numbered(self, text: str, i: int) -> str:
        pattern = self._resolved(text)
        if not pattern.members:
            raise OptionError("role", text, [f"@{role}" for role in self._roles()])
        if not -len(pattern.members) <= i < len(pattern.members):
            raise OptionError(f"cache[{text!r}, i], i", i, range(-len(pattern.members), len(pattern.members)))
        return self._one(f"{text}, {i}", self._matching(replace(pattern, members=(pattern.members[i],))))

    def _absent(self, text: str) -> HookNameError:
        error = HookNameError(text, list(self.places))
        error.args = (error.args[0].replace("in this model", "recorded in this cache").replace("`model.hook_names()`", "`list(cache)`"),)
        return error
