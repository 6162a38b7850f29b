"""Fingerprints: hashes of everything a number depends on.

The hash covers the code that runs, not its source text: weights bit by bit, attributes, and the bytecode and names of
functions and classes. The next run of the same program gives the same fingerprint; a candidate's name, a comment or the
position in a file do not change it. If it is uncertain whether two things compute the same number, their fingerprints
differ.
"""

import copyreg
import functools
import hashlib
import importlib.metadata
import platform
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dis import get_instructions
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_zico.__about__ import __version__
from lightning_zico.bridge.trainers import is_trainer
from lightning_zico.engine.layers import declared_layers
from lightning_zico.errors import UnfingerprintableError
from lightning_zico.scoring.process_state import switches

_PLAIN = frozenset({bool, int, float, complex, str, type(None), type(...), type(NotImplemented)})
_EMPTY_CELL = CellType()
# Attributes that the interpreter sets on a class: texts and types, some written only when a class is used, others in no
# fixed order.
_NOTES_OF_A_CLASS = frozenset(
    {
        "_abc_impl",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__signature__",
        "__slotnames__",
        "__slots__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
    }
)
# Tables of hooks, by number of the hook. Lightning's modules have no others.
_HOOK_TABLES = tuple(name for name, value in vars(nn.Module()).items() if "_hooks" in name and isinstance(value, dict))
_DESCRIPTORS_IN_C = (
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
_MAX_PATH_LENGTH = 200  # in an error: two lines of a terminal
# They are hashed as the function that they wrap.
_WRAPPERS = (classmethod, staticmethod, functools.cached_property, functools._lru_cache_wrapper)


def fingerprint(*parts: Any) -> str:
    """Hash values with everything that they are made of.

    The hash covers numbers, texts, containers, arrays and tensors (type, shape, strides, dtype, device type,
    ``requires_grad``, every bit); modules with all their attributes, hooks, modes and submodules; objects with what
    ``copy.copy`` would copy; functions with their bytecode, defaults, closures and the global variables that they read;
    classes with their functions, attributes and bases. Code of an installed package or of Python itself is represented
    by its name and version.

    The hash does not cover: what a function imports when it runs, or finds by a name that is not written in it; the
    order in which a module got its attributes, except parameters, buffers and submodules; what global variables reach
    through attributes of installed packages, such as ``torch.backends``; environment variables and files; private
    memory of extensions; a module's trainer, and what is reached through it.

    Args:
        parts: Everything that the number depends on, in a fixed order.

    Returns:
        32 hexadecimal digits.

    Raises:
        UnfingerprintableError: If a part has no content to hash, such as a lock, an open file or a scripted function;
            the message says where.

    Example:
        >>> fingerprint(nn.Linear(2, 2, bias=False)) == fingerprint(nn.Linear(2, 2, bias=False))  # other weights
        False
        >>> fingerprint({"lr": 0.1}, nn.ReLU()) == fingerprint({"lr": 0.1}, nn.ReLU())
        True
    """
    walk = _Walk()
    try:
        walk.visit(parts)
    except RecursionError as error:
        reason = "it is nested too deeply, or contains itself in a set; `sys.setrecursionlimit` allows deeper nesting"
        raise UnfingerprintableError(f"'{walk.location}' has no fingerprint: {reason}.") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnfingerprintableError(f"'{walk.location}' has no fingerprint: {reason}.") from error
    return walk.digest


def fingerprint_or_none(*parts: Any) -> str | None:
    """Hash values, as `fingerprint` does; None if a part of them cannot be hashed."""
    try:
        return fingerprint(*parts)
    except UnfingerprintableError:
        return None


def surroundings() -> tuple[Any, ...]:
    """List what every number depends on in the process or thread that computes it.

    These are the versions of this package, torch, Lightning and Python, the settings of the process
    (`process_state.switches`), such as the number of threads, which changes the order of sums, and declared layers.
    """
    return (
        (__version__, _own_source(), torch.__version__, lightning.__version__, platform.python_version()),
        switches(),
        declared_layers(),
    )


@functools.cache
def _own_source() -> str:
    """Hash this package's source, which changes between releases while the version does not."""
    root = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _Walk:
    """One walk through everything reachable; an object met again is represented by its number."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # an `id` is valid only while its object lives
        self.path: list[str] = []

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def location(self) -> str:
        """The current position in the walk, with the middle left out if it is long."""
        location = ".".join(self.path)
        half = _MAX_PATH_LENGTH // 2
        return location if len(location) <= _MAX_PATH_LENGTH else f"{location[:half]} ... {location[-half:]}"

    def visit(self, value: Any) -> None:
        """Hash a value and its parts."""
        if type(value) in _PLAIN:
            self._put(type(value).__name__, repr(value))
        elif type(value) is bytes:
            self._put("bytes", value)
        elif type(value) is tuple:  # the compiler decides whether equal tuples are shared
            self._all("tuple", value)
        elif isinstance(value, CodeType):
            self._code(value)
        elif is_trainer(value):
            self.visit(None)  # scoring puts a private one in its place
        elif id(value) in self._met:
            self._put("again", str(self._met[id(value)]))
        else:
            self._met[id(value)] = len(self._met)
            self._alive.append(value)
            self._compound(value)

    def _put(self, kind: str, content: str | bytes | memoryview) -> None:
        raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        self._hash.update(f"{kind}:{len(raw)}:".encode())
        self._hash.update(raw)

    def _all(self, kind: str, values: Iterable[Any]) -> None:
        values = list(values)
        self._put(kind, str(len(values)))
        for value in values:
            self.visit(value)

    def _visit_named(self, items: Iterable[tuple[str, Any]]) -> None:
        items = list(items)
        self._put("names", str(len(items)))
        for name, value in items:
            with self._under(name):
                self.visit(name)
                self.visit(value)

    @contextmanager
    def _under(self, name: str) -> Iterator[None]:
        self.path.append(name)
        yield
        self.path.pop()  # not after an exception, since the error says where it was

    def _compound(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, BuiltinFunctionType):
            self._put("builtin", _name_of(value))
            self.visit(None if isinstance(value.__self__, ModuleType) else value.__self__)
        elif hasattr(value, "__qualname__") and _is_installed(
            value
        ):  # functions of extensions, which are not Python functions
            self._put("installed", _name_of(value))
        elif isinstance(value, _DESCRIPTORS_IN_C):
            self._put("descriptor", value.__name__)
            self.visit(value.__objclass__)
        elif isinstance(value, ModuleType):
            self._put("python module", value.__name__)
        elif isinstance(value, MethodType):
            self._all("method", (value.__func__, value.__self__))
        elif isinstance(value, property):
            self._all("property", (value.fget, value.fset, value.fdel))
        elif isinstance(value, _WRAPPERS):
            wrapped = value.func if isinstance(value, functools.cached_property) else value.__wrapped__
            self._all(type(value).__name__, [wrapped])
        elif isinstance(value, weakref.ReferenceType):
            self._all("weak", [value()])
        elif isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            self._put("torch", str(value))
        elif type(value) in (dict, MappingProxyType):
            self._dict(value)
        elif type(value) is list:
            self._all("list", value)
        elif isinstance(value, set | frozenset):
            self._set(value)
        else:
            self._object(value)

    def _dict(self, value: Any) -> None:
        self._put("dict", str(len(value)))
        for key, part in value.items():
            self.visit(key)
            with self._under(str(key)):
                self.visit(part)

    def _set(self, value: "set[Any] | frozenset[Any]") -> None:
        """Hash a set without its order, which differs between processes."""
        self.visit(type(value))
        parts = []
        for part in value:
            walk = _Walk()
            walk.visit(part)
            parts.append(walk.digest)
        self._all("set", sorted(parts))
        self.visit((set if isinstance(value, set) else frozenset).__reduce__(value)[2])  # attributes of a subclass

    def _tensor(self, tensor: Tensor) -> None:
        self.visit(type(tensor))
        self._visit_named(vars(tensor).items())
        if is_lazy(tensor):
            self._put("lazy", f"{tensor.dtype} {tensor.device.type} {tensor.requires_grad}")
            return
        if tensor.is_nested or tensor.is_quantized or tensor.layout not in (torch.strided, torch.sparse_coo):
            raise TypeError("a tensor that is nested, quantised or sparse in a compressed format cannot be hashed")
        facts = (tensor.dtype, tensor.layout, tensor.device.type, tensor.requires_grad, tuple(tensor.shape))
        self._put("tensor", str(facts))
        if tensor.layout == torch.sparse_coo:
            self._all("sparse", (tensor._indices(), tensor._values(), tensor.is_coalesced()))
            return
        self._put("strides", str(tensor.stride()))
        if not tensor.is_meta:
            flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self._put("numbers", flat.view(torch.uint8).numpy().data)

    def _module(self, module: nn.Module) -> None:
        self.visit(type(module))
        attributes = dict(sorted(vars(module).items()))  # unpickling may put them in another order
        # Hooks are numbered in the order in which this process creates them; several tables may refer to one hook.
        tables = {name: attributes[name] for name in _HOOK_TABLES if name in attributes}
        numbers = {key: idx for idx, key in enumerate(dict.fromkeys(key for table in tables.values() for key in table))}
        for name, table in tables.items():
            attributes[name] = [(numbers[key], hook) for key, hook in table.items()]
        self._visit_named(attributes.items())

    def _object(self, value: Any) -> None:
        """Hash an object as what ``copy.copy`` would make it from."""
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:
            raise TypeError(f"a {type(value).__name__} has no content that can be hashed") from error
        self.visit(type(value))
        parts = (reduced,) if isinstance(reduced, str) else reduced
        self._all("copy", (list(part) if isinstance(part, Iterator) else part for part in parts))

    def _class(self, cls: type) -> None:
        self._put("class", _name_of(cls))
        if _is_installed(cls):
            return
        self._all("bases", (type(cls), *cls.__bases__))
        self._visit_named((name, member) for name, member in sorted(vars(cls).items()) if _says_something(name, member))

    def _function(self, function: FunctionType) -> None:
        self._put("function", _name_of(function))
        if _is_installed(function):
            return
        self._code(function.__code__)
        self._all("defaults", (function.__defaults__, function.__kwdefaults__))
        self._visit_named(vars(function).items())
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._visit_named((name, None if cell == _EMPTY_CELL else cell.cell_contents) for name, cell in cells)
        namespace = function.__globals__
        if not _is_library(namespace.get("__name__", "")):
            names = _names_in(function.__code__)
            self._globals(names.read, names.all, namespace, set())

    def _globals(self, read: set[str], names: set[str], namespace: dict[str, Any], met: set[int]) -> None:
        """Hash the global variables that a function reads, and attributes of the user's modules that it mentions."""
        for name in sorted(read & namespace.keys()):
            value = namespace[name]
            self._visit_named([(name, value)])
            if isinstance(value, ModuleType) and not _is_library(value.__name__) and id(value) not in met:
                with self._under(name):
                    self._globals(names, names, vars(value), met | {id(value)})

    def _code(self, code: CodeType) -> None:
        self._put("code", code.co_code)
        self._put("exceptions", getattr(code, "co_exceptiontable", b""))
        self._all("names", (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
        self._all("counts", (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags))
        self._all("constants", code.co_consts)


class _Names:
    """Names in a function: all names, and those of global variables that it reads."""

    def __init__(self) -> None:
        self.all: set[str] = set()
        self.read: set[str] = set()


def _names_in(code: CodeType) -> _Names:
    names = _Names()
    waiting = [code]
    while waiting:
        part = waiting.pop()
        names.all.update(part.co_names)
        names.all.update(const for const in part.co_consts if isinstance(const, str))  # as in `getattr(module, "name")`
        names.read.update(i.argval for i in get_instructions(part) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        waiting.extend(const for const in part.co_consts if isinstance(const, CodeType))
    return names


def _name_of(value: Any) -> str:
    """Return the name of a class or function, with the version of its package."""
    module = _module_of(value)
    name = f"{'__main__' if module == '__mp_main__' else module}.{value.__qualname__}"
    return f"{name} {_version(module.partition('.')[0])}" if _is_library(module) else name


def _module_of(value: Any) -> str:
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else ""  # classes in C may show a descriptor here


def _says_something(name: str, member: Any) -> bool:
    """Whether an attribute of a class comes from the user; slots do not, since their values are in the objects."""
    if name in _NOTES_OF_A_CLASS or name.startswith("__pydantic_"):  # caches, with addresses in them
        return False
    return not isinstance(member, MemberDescriptorType)


def _is_installed(value: Any) -> bool:
    """Whether a class or function is what an installed package has under its name, and not created at run time."""
    module = _module_of(value)
    if not _is_library(module):
        return False
    found: Any = sys.modules.get(module)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


@functools.cache
def _is_library(module: str) -> bool:
    top = module.partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return False
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or getattr(sys.modules.get(top), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


@functools.cache
def _version(package: str) -> str:
    version = getattr(sys.modules.get(package), "__version__", None)
    if version is None and package not in sys.stdlib_module_names:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = None
    return str(version)
