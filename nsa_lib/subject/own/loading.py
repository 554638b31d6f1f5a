"""Import what a user brings, call it, and say in one line why that failed, beside the user's own traceback."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, version
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import nsa_lib
from nsa_lib.subject.config import ENTRY_POINTS, ConfigError, Own
from nsa_lib.subject.own.spec import is_file

OURS = f"{Path(nsa_lib.__file__).parent}{os.sep}"

HIDDEN = (OURS, f"{Path(torch.__file__).parent}{os.sep}", f"{Path(importlib.__file__).parent}{os.sep}", "<frozen ")
"""Where frames of a traceback are not the user's."""


class OwnError(ConfigError):
    """What a user brings cannot be used: one line that names parameter, place and Python's reason."""

    def __init__(self, line: str, user_traceback: str = ""):
        super().__init__(line)
        self.user_traceback = user_traceback
        """The frames of the user's code and its error, as Python prints them."""


@contextmanager
def blamed(own: Own, doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises inside, and its call of `sys.exit`, into an OwnError."""
    try:
        yield
    except OwnError:
        raise
    except BaseException as error:  # noqa: BLE001  a user's code may raise anything, and none of it goes on
        raise OwnError(f"{own.role}={own.spec}: {doing}: {reason(error)}", users_traceback(error)) from None


def reason(error: BaseException) -> str:
    """Return Python's own reason in one line, of a length that can be read."""
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    said = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]} ..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


MOST_SAID = 500


def users_traceback(error: BaseException) -> str:
    """Return a traceback with the frames of the user's code alone."""
    found = traceback.TracebackException.from_exception(error)
    link = found
    while link is not None:
        link.stack = traceback.StackSummary.from_list(
            [frame for frame in link.stack if not frame.filename.startswith(HIDDEN)]
        )
        link = link.__cause__ or link.__context__
    return "".join(found.format()).rstrip()


def load(own: Own) -> Callable[..., object]:
    """Return what a spec names. Raises OwnError if it cannot be imported, has no such name, or cannot be called."""
    found = _loaded(own)
    if isinstance(found, nn.Module) or not callable(found):
        kind = "a module that is already made" if isinstance(found, nn.Module) else type(found).__name__
        raise OwnError(f"{own.role}={own.spec}: it is {kind}; accepts a class or a function")
    return found


@cache
def _loaded(own: Own) -> object:
    module, _, name = own.spec.rpartition(":")
    if not module:
        found = _entry_point(own)
        with blamed(own, f"entry point {found.value} cannot be loaded"), _torch_as_it_was():
            return found.load()
    folders = [str(Path(module).parent)] if is_file(own.spec) else list(own.places)
    # Last, so that a file of the user's called torch.py shadows nothing.
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    with blamed(own, f"{module} cannot be imported"), _torch_as_it_was():
        imported = _file(Path(module)) if is_file(own.spec) else importlib.import_module(module)
    with blamed(own, f"{module} has no {name}"):
        return attrgetter(name)(imported)


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Put back what a file sets for all of torch while it is imported: dtype and device are those of the run."""
    dtype, has_gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    has_order = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(has_gradients)
        torch.use_deterministic_algorithms(has_order)


def _entry_point(own: Own) -> EntryPoint:
    return next(iter(entry_points(group=ENTRY_POINTS[own.role], name=own.spec)))


def _file(path: Path) -> ModuleType:
    """Import a file under its own name, so that other files beside it find it; under another if that is taken."""
    name = path.stem if path.stem.isidentifier() and not _is_taken(path) else "own_" + re.sub(r"\W", "_", path.stem)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_taken(path: Path) -> bool:
    """Return whether another module has the name of a file."""
    known = sys.modules.get(path.stem)
    if known is not None:
        return getattr(known, "__file__", None) != str(path)
    found = importlib.util.find_spec(path.stem)
    return found is not None and found.origin != str(path)


def called(own: Own, target: Callable[..., object]) -> object:
    """Call a factory with the sizes that its signature names, overlaid by the user's arguments."""
    with blamed(own, f"it cannot be called with {_said(arguments(own, target))}"):
        return target(**arguments(own, target))


def arguments(own: Own, target: Callable[..., object]) -> dict[str, object]:
    """Return what a factory is called with."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # of a builtin, which tells no names
        parameters = ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {name: own.sizes[name] for name in named if name in own.sizes} | dict(own.arguments)


def _said(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) or "no arguments"


def made_module(own: Own) -> nn.Module:
    """Call a user's factory for a module. Raises OwnError for anything else, or one that it has given before."""
    found = called(own, load(own))
    if not isinstance(found, nn.Module):
        raise OwnError(f"{own.role}={own.spec}: it gives {type(found).__name__}; accepts a torch.nn.Module")
    if hasattr(found, _GIVEN):
        raise OwnError(f"{own.role}={own.spec}: it gives the same object twice; each layer needs one of its own")
    object.__setattr__(found, _GIVEN, True)
    return found


_GIVEN = "_given_to_nsa_lib"


def provenance(own: Own) -> dict[str, object]:
    """Return where a user's code comes from: its files with a sha256 over them, and the installed version.

    Of a file these are the file and what it has imported so far from its own folder; of a package all files that it
    has. `file_sha256` is of the named file alone.
    """
    _loaded(own)
    named = own.spec.rpartition(":")[0]
    if is_file(own.spec):
        files, version_of = _beside(Path(named)), None
    else:
        files, version_of = _of_package(named or _entry_point(own).module)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "role": own.role,
        "spec": own.spec,
        "label": own.label,
        "path": str(files[0]),
        "files": len(files),
        "sha256": digest.hexdigest(),
        "file_sha256": hashlib.sha256(files[0].read_bytes()).hexdigest(),
        "version": version_of,
    }


def _beside(path: Path) -> list[Path]:
    """Return a file, and then the files that were imported from its folder."""
    loaded = {Path(f) for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    own = {
        file
        for file in loaded
        if file.is_relative_to(path.parent) and "site-packages" not in file.parts and not str(file).startswith(OURS)
    }
    return [path, *sorted(own - {path})]


def _of_package(named: str) -> tuple[list[Path], str | None]:
    """Return the files of the package of a module, that module's first, and the version that is installed."""
    top = named.partition(".")[0]
    package = sys.modules[top]
    folders = [Path(place) for place in getattr(package, "__path__", ())]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".so", ".cu", ".cuh")]
    own_file = sys.modules[named].__file__ or package.__file__
    rest = sorted(set(files) - {Path(own_file)})
    distributions = packages_distributions().get(top, [])
    try:
        return [Path(own_file), *rest], version(distributions[0]) if distributions else None
    except PackageNotFoundError:
        return [Path(own_file), *rest], None
