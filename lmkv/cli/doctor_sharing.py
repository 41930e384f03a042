"""``lmkv doctor``: who shares with whom in a directory, and why others do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkv.cli.diagnosis import Diagnosis
from lmkv.cli.text import shown
from lmkv.errors import ConfigError
from lmkv.sharing import Comparison, Side, compare, nearest_pairs

if TYPE_CHECKING:
    from lmkv.tree_access import Sample

Metas = dict[str, dict[str, dict[str, Any]]]
"""What each ``meta.json`` says: by namespace, then by directory."""

UNREADABLE = "its meta.json cannot be read"


def read_metas(directories: Sequence[str]) -> Metas:
    """Of all namespaces in ``directories``; empty where one cannot be read."""
    from lmkv.tree import namespaces, read_meta

    found: Metas = {}
    for directory in directories:
        for name in namespaces(directory):
            found.setdefault(name, {})[directory] = read_meta(directory, name)
    return found


def side_of(name: str, metas: Mapping[str, dict[str, Any]]) -> Side | None:
    """A namespace by whichever of its ``meta.json`` can be read."""
    for said in metas.values():
        if said:
            return Side(name, said["facts"], said["about"])
    return None


def examine_sharing(
    found: Diagnosis, metas: Metas, samples: Mapping[str, Mapping[str, Sample]]
) -> None:
    """Tell the namespaces, and why those of one model are apart. ``samples``: some chunks of each
    namespace, by directory.
    """
    sides = []
    for name, one in metas.items():
        side = side_of(name, one)
        told: dict[str, Any] = {"name": name, "directories": list(one)}
        if side is None:
            found.facts[f"namespace {name}"] = UNREADABLE
        else:
            sides.append(side)
            found.facts[f"namespace {name}"] = _in_short(side)
            told |= {"model": side.model, "facts": side.facts, "about": side.about}
        told["has_chunks"] = any(sample.keys for sample in samples.get(name, {}).values())
        found.namespaces.append(told)
    if empty := [one["name"] for one in found.namespaces if not one["has_chunks"]]:
        found.note(
            f"Nothing is stored in namespace {', '.join(empty)}: its engines only load "
            '("kv_role": "kv_consumer"), have had no prompt of a block or more, or drop their '
            "stores (vllm:lmkv_stores_dropped_total and its like)."
        )
    found.pairs = [pair_json(pair) for pair in nearest_pairs(sides)]


def _in_short(side: Side) -> str:
    facts = side.facts
    try:
        return shown(
            f"{side.model}, {facts['dtype']}, blocks of {facts['block_tokens']} tokens, "
            f"chunks of {facts['chunk_tokens']}"
        )
    except KeyError:
        return UNREADABLE


def examine_pair(found: Diagnosis, metas: Metas, names: tuple[str, str]) -> None:
    """Compare two namespaces only: of the directories, or ``meta.json`` files. Raises ConfigError
    for what is neither.
    """
    ours, theirs = (_side_named(name, metas) for name in names)
    found.pairs = [pair_json(compare(ours, theirs))]


def _side_named(name: str, metas: Metas) -> Side:
    if name in metas:
        side = side_of(name, metas[name])
        if side is None:
            raise ConfigError(f"namespace {name}: {UNREADABLE}")
        return side
    try:
        said = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
        return Side(str(said["namespace"])[:16], dict(said["facts"]), dict(said["about"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{name} is no namespace of these directories, and no meta.json ({error})"
        ) from error


def pair_json(pair: Comparison) -> dict[str, Any]:
    return {
        "namespaces": [pair.ours.name, pair.theirs.name],
        "models": [pair.ours.model, pair.theirs.model],
        "shares": pair.shares,
        "fields": [
            {
                "field": cause.fact,
                "values": [cause.ours, cause.theirs],
                "what": cause.words,
                "advice": cause.advice,
                "text": cause.text,
            }
            for cause in pair.causes
        ],
        "also": list(pair.also),
    }


def pair_lines(pair: Mapping[str, Any]) -> list[str]:
    """A pair for people: the first line says which, those behind it why."""
    (ours, theirs), (our_model, their_model) = pair["namespaces"], pair["models"]
    models = our_model if our_model == their_model else f"{our_model}, {their_model}"
    if pair["shares"]:
        return [f"{ours} and {theirs} ({models}) are one namespace: their engines share."]
    lines = [f"{ours} and {theirs} ({models}) do not share:"]
    lines += [f"  {field['text']}." for field in pair["fields"]]
    if pair["also"]:
        lines.append(f"  {', '.join(pair['also'])} differ too, most likely because of that.")
    return lines


def examine_sets(
    found: Diagnosis, metas: Metas, samples: Mapping[str, Mapping[str, Sample]]
) -> None:
    """Whether the engines of each namespace name the same directories by the same paths: a chunk is
    looked for where its key and the paths say.
    """
    for name, one in metas.items():
        said = {directory: _directories(meta) for directory, meta in one.items()}
        sets = sorted({tuple(sorted(paths)) for paths in said.values() if paths})
        if len(sets) == 1:
            _examine_set(found, name, list(sets[0]), dict(samples.get(name, {})))
        elif sets and all(paths == [directory] for directory, paths in said.items() if paths):
            found.note(
                f"Namespace {name} is in each of {', '.join(said)}, whose engines name one "
                "directory each: they do not see each other's chunks. Give all of them the same "
                '"path", or the same mount.'
            )
        elif sets:
            named = "; ".join(", ".join(paths) for paths in sets)
            found.note(
                f"Engines of namespace {name} name, or have named, different sets of directories "
                f"({named}): they find only a part of each other's chunks. {_SAME_SET}"
            )


_SAME_SET = 'Give all of them the same list in "path", by the same paths.'


def _directories(meta: Mapping[str, Any]) -> list[str]:
    said = meta.get("about", {}).get("directories")
    return [str(path) for path in said] if isinstance(said, list) else []


def _examine_set(found: Diagnosis, name: str, said: list[str], samples: dict[str, Sample]) -> None:
    from lmkv.tree_access import misplaced

    missing = [directory for directory in said if directory not in samples]
    if len(said) > 1 and missing:
        found.note(
            f"Engines of namespace {name} spread its chunks over {', '.join(said)}: one that names "
            f"others, or these by other paths, finds only a part. Look at all of them: lmkv doctor "
            f"{' '.join(said)}"
        )
        return
    if missing:  # the one directory, by another path: on another host, say
        return
    for directory, wrong in misplaced(said, samples).items():
        found.note(
            f"{wrong} chunks of namespace {name} in {directory} belong elsewhere: an engine stores "
            f"there that does not name {', '.join(said)}. {_SAME_SET}"
        )
