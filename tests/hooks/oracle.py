"""Hook names and selections written out literally: no regular expressions, no masks."""

import itertools


def matches_level(pattern, level):
    """`*` stands for any characters of one level."""
    if not pattern:
        return not level
    if pattern[0] == "*":
        return any(matches_level(pattern[1:], level[k:]) for k in range(len(level) + 1))
    return bool(level) and level[0] == pattern[0] and matches_level(pattern[1:], level[1:])


def matches_path(pattern, path):
    """`**` stands for any number of levels, none among them."""
    return _match(pattern.split(".") if pattern else [], path.split(".") if path else [])


def _match(patterns, levels):
    if not patterns:
        return not levels
    if patterns[0] == "**":
        return any(_match(patterns[1:], levels[k:]) for k in range(len(levels) + 1))
    return bool(levels) and matches_level(patterns[0], levels[0]) and _match(patterns[1:], levels[1:])


def replace_selected(x, new, axes, where):
    """Entry by entry: the new value where every named axis is at one of its indices, the old one elsewhere."""
    y = x.clone()
    for place in itertools.product(*map(range, x.shape)):
        if all(place[axes.index(a)] in [k % x.shape[axes.index(a)] for k in ks] for a, ks in where.items()):
            y[place] = new[place]
    return y
