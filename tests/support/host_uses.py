"""What our code uses of ComfyUI, read from its source, and whether this host still has it the way it is used.

Three questions, each answered with sentences that name what moved:
  moved_uses       does every attribute exist, and would every call bind?
  moved_overrides  can a method of ours still stand where the host's own stood?
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server"}


def is_hosts(thing: object) -> bool:
    """Whether a module, class or function is ComfyUI's."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in HOST


class Found(NamedTuple):
    """A thing of the host's and how a sentence names it."""

    name: str
    thing: Any


def moved_uses(source: Path, namespace: Mapping[str, Any], objects: Mapping[str, Any]) -> list[str]:
    """One sentence for each use in a source file that this host cannot serve.

    namespace: the file's module-level names, as imported. objects: expressions of the file, as they are spelled there, that
    stand for an object of the host's ("guider", "self.model_patcher"), with such an object.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    reader = _Reader(f"{source.parent.name}/{source.name}", namespace, objects)
    reader.visit(tree)
    return reader.problems


class _Reader(ast.NodeVisitor):
    def __init__(self, file: str, namespace: Mapping[str, Any], objects: Mapping[str, Any]):
        self.file, self.objects = file, objects
        self.names = {name: Found(_name_of(name, thing), thing) for name, thing in namespace.items() if is_hosts(thing)}
        self.problems: list[str] = []
        self.classes: list[Any] = []
        self.namespace = namespace

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in HOST:
                self._import(alias.name, node)
                root = alias.name.partition(".")[0]
                self.names[root] = Found(root, importlib.import_module(root))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module.partition(".")[0] in HOST and (module := self._import(node.module, node)):
            for alias in node.names:
                if hasattr(module, alias.name):
                    self.names[alias.asname or alias.name] = Found(f"{node.module}.{alias.name}", getattr(module, alias.name))
                else:
                    self._report(node, f"{node.module}.{alias.name}: the host has no such thing, we import it")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.classes.append(self.namespace.get(node.name))
        self.generic_visit(node)
        self.classes.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._find(node, report=True)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if found := self._find(node.func):
            if complaint := refused_call(found.thing, node):
                self._report(node, f"{found.name}: {complaint}")
        self.generic_visit(node)

    def _import(self, name: str, node: ast.AST) -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            self._report(node, f"{name}: cannot be imported from the host ({error}), we import it")

    def _find(self, node: ast.AST, report: bool = False) -> Found | None:
        """The host's thing that an expression stands for; None where it is not the host's, or not there."""
        if (spelled := ast.unparse(node)) in self.objects:
            return Found(f"{_qualified(type(self.objects[spelled]))} (our {spelled})", self.objects[spelled])
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if ast.unparse(node.value) == "super()":
            return self._find_in_bases(node, report)
        if (owner := self._find(node.value)) is None:
            return None
        name = f"{owner.name}.{node.attr}"
        if hasattr(owner.thing, node.attr):
            return Found(name, getattr(owner.thing, node.attr))
        if report:
            self._report(node, f"{name}: the host has no such thing, we use it")
        return None

    def _find_in_bases(self, node: ast.Attribute, report: bool) -> Found | None:
        bases = self.classes[-1].__mro__[1:] if self.classes and self.classes[-1] else ()
        for base in bases:
            if node.attr in vars(base):
                if not is_hosts(base):
                    return None
                # Bound to nothing in particular, so that its signature has no `self`
                return Found(f"{_qualified(base)}.{node.attr}", vars(base)[node.attr].__get__(object(), base))
        if report and any(map(is_hosts, bases)):
            self._report(node, f"super().{node.attr}: the host has no such method, we call it")
        return None

    def _report(self, node: ast.AST, sentence: str) -> None:
        self.problems.append(f"{sentence} in {self.file}:{node.lineno}")


def refused_call(function: Any, call: ast.Call) -> str | None:
    """Why a call as it is written would not bind to a function's signature; None where it would, or nobody knows."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in, or not callable
        return None
    positional = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    unpacked = len(positional) < len(call.args) or len(keywords) < len(call.keywords)
    try:
        (signature.bind_partial if unpacked else signature.bind)(*positional, **keywords)
    except TypeError as error:
        ours = ", ".join(map(ast.unparse, [*call.args, *call.keywords]))
        return f"the host's signature is {signature}, we call it with ({ours}) ({error})"
    return None


def moved_overrides(module: ModuleType, follows: Mapping[str, type]) -> list[str]:
    """One sentence for each method of the module's classes that no longer stands where a method of the host's stood.

    follows: class name -> the host's class whose place it takes without being derived from it, so that its methods are
    called by position.
    """
    return [sentence for cls in _classes_of(module) for sentence in _moved_in(cls, follows.get(cls.__name__))]


def _classes_of(module: ModuleType) -> list[type]:
    return [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]


def _moved_in(cls: type, followed: type | None) -> Iterator[str]:
    bases = [followed] if followed else [base for base in cls.__mro__[1:] if is_hosts(base)]
    for name, function in vars(cls).items():
        if not bases or name.startswith("_") or not isinstance(function, (FunctionType, classmethod, staticmethod)):
            continue
        host = next((getattr(base, name) for base in bases if hasattr(base, name)), None)
        place = f"{_qualified(bases[0])}.{name}"
        if host is None:
            yield f"{place}: the host has no such method, {cls.__name__}.{name} would never be called"
        elif complaint := misfit(inspect.signature(host), inspect.signature(getattr(cls, name)), by_name=followed is None):
            yield f"{place}: {complaint} ({cls.__name__})"


def misfit(host: inspect.Signature, ours: inspect.Signature, by_name: bool = True) -> str | None:
    """Why a function with our signature cannot be called as the host's own is; None where it can.

    by_name: whether the host may name the arguments, so that the names count.
    """
    wanted = [p for p in host.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(wanted) < len(host.parameters):  # the host promises anything
        return None
    accepts_any_name = any(p.kind == p.VAR_KEYWORD for p in ours.parameters.values())
    slots = [p.name for p in ours.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    accepts_any_number = any(p.kind == p.VAR_POSITIONAL for p in ours.parameters.values())
    said = f"the host's signature is {host}, our override's is {ours}"
    for position, parameter in enumerate(wanted):
        at_its_place = position < len(slots) and (slots[position] == parameter.name or not by_name)
        beyond = position >= len(slots) and accepts_any_number
        if parameter.kind != parameter.KEYWORD_ONLY and not (at_its_place or beyond):
            return f"{said}, so its {parameter.name} has no place in ours"
        if by_name and parameter.name not in ours.parameters and not accepts_any_name:
            return f"{said}, so ours does not know {parameter.name}"
    names = {p.name for p in wanted}
    for position, name in enumerate(slots):
        needed = ours.parameters[name].default is inspect.Parameter.empty
        if needed and (name not in names if by_name else position >= len(wanted)):
            return f"{said}, so nobody gives our {name}"
    return None


def _name_of(name: str, thing: Any) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return f"{thing.__module__}.{getattr(thing, '__qualname__', name)}"


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
