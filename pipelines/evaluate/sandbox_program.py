"""Both ends of a test inside sandboxes.

sandbox.py starts each as `python -I -S -c <this file> candidate|tester`.

The candidate's program and the tests run in two processes that share nothing but two pipes. The
tests find the program's names and call its functions over these, as if both were one module; only
plain values come back. So a program cannot leave early with success, change `assert`, return an
object that equals everything, or read the expected values: all it can do is answer.

Standard library alone. Arguments: the role, and the descriptors to read from and to write to the
other process. Standard input holds the program or the tests; the tester's standard output is the
verdict.
"""

import ast
import builtins
import collections
import datetime
import decimal
import fractions
import importlib
import json
import os
import sys

_LARGEST = 8 * 2**20  # bytes of a message
_PLAIN = (type(None), bool, int, str)
_SEQUENCES = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "iterator": iter,
}
_NOT_ITS_OWN = {"__name__", "__builtins__", "__annotations__"}  # names of every module
_BY_REPR = {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}


class NotPlain(TypeError):
    pass


def encode(value, depth=0):
    """A JSON value that decode() turns back; NotPlain for objects with behaviour of their own."""
    kind = type(value)
    if depth > 100:
        raise NotPlain("nested too deeply")
    if kind in _PLAIN:
        if kind is int and abs(value) > 2**63:
            return {"int": hex(value)}
        return value
    if kind is float:
        return {"float": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if kind in (bytes, bytearray):
        return {"bytes": list(value)}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {
            "dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]
        }
    for name, plain in _SEQUENCES.items():
        if plain is not iter and isinstance(value, plain):
            return {name: [encode(item, depth + 1) for item in plain.__iter__(value)]}
    for plain in (int, float):
        if isinstance(value, plain):
            return encode(plain.__pos__(value))
    if isinstance(value, str):
        return str.__getitem__(value, slice(None))
    for name, plain in _BY_REPR.items():
        if kind is plain:
            return {name: str(value)}
    if kind in (datetime.date, datetime.datetime):
        return {kind.__name__: value.isoformat()}
    if kind is Remote:
        return {"program": object.__getattribute__(value, "_path")}
    if (
        kind
        in (
            type(iter([])),
            type(iter(())),
            type(iter({})),
            type(iter("")),
            map,
            filter,
            zip,
            enumerate,
            reversed,
        )
        or kind.__name__ == "generator"
    ):
        items = []
        for item in value:
            items.append(encode(item, depth + 1))
            if len(items) > 100_000:
                raise NotPlain("an iterator without end")
        return {"iterator": items}
    raise NotPlain(f"a value of type {kind.__name__} cannot leave the sandbox")


def decode(value):
    if not isinstance(value, dict):
        return value
    ((kind, body),) = value.items()
    if kind == "int":
        return int(body, 16)
    if kind == "float":
        return float.fromhex(body)
    if kind == "complex":
        return complex(float.fromhex(body[0]), float.fromhex(body[1]))
    if kind == "bytes":
        return bytes(body)
    if kind == "range":
        return range(*body)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in body}
    if kind in _SEQUENCES:
        items = [decode(item) for item in body]
        made = _SEQUENCES[kind](items)
        if kind in ("set", "frozenset") and list(made) != items:
            # A set's order depends on how it was built; this is how a literal is.
            return _SEQUENCES[kind](set(items))
        return made
    if kind in _BY_REPR:
        return _BY_REPR[kind](body)
    if kind == "program":
        return found_at(body)
    if kind in ("date", "datetime"):
        return getattr(datetime, kind).fromisoformat(body)
    raise NotPlain(kind)


def send(message, descriptor=None):
    """To the other process, or to a descriptor of one's own."""
    descriptor = OUT if descriptor is None else descriptor
    data = json.dumps(message).encode()
    if len(data) > _LARGEST:
        raise NotPlain(f"{len(data)} bytes")
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive():
    """The other process's next message; EOFError if it is gone or says nonsense."""
    size = int.from_bytes(_exactly(4), "big")
    if size > _LARGEST:
        raise EOFError("a message too long")
    return json.loads(_exactly(size))


def _exactly(size):
    data = b""
    while len(data) < size:
        piece = os.read(IN, size - len(data))
        if not piece:
            raise EOFError("the program ended")
        data += piece
    return data


NAMESPACE = {"__name__": "program"}  # the candidate's


def found_at(path):
    """What the program has under a name and attributes of it."""
    if path[0] not in NAMESPACE or path[0] in _NOT_ITS_OWN:
        raise NameError(f"name {path[0]!r} is not defined")
    found = NAMESPACE[path[0]]
    for name in path[1:]:
        found = getattr(found, name)
    return found


def candidate():
    """Execute the program, then answer questions until the tests are through."""
    sys.set_int_max_str_digits(0)
    source = own_input()
    silence()
    try:
        exec(compile(source, "program", "exec"), NAMESPACE)
        known = own_names()
        send({"names": known})
    except BaseException as error:
        send({"error": described(error)})
        return
    while True:
        request = receive()
        try:
            found = found_at(request["path"])
            if "args" in request:
                arguments = [decode(value) for value in request["args"]]
                named = {name: decode(value) for name, value in request["kwargs"].items()}
                value = found(*arguments, **named)
                names, reply = (
                    own_names(),
                    {"value": encode(value), "args": [left(a) for a in arguments]},
                )
                send(reply if names == known else {**reply, "names": names})
                known = names
            elif isinstance(found, type(sys)):
                send({"module": found.__name__})
            elif isinstance(found, type) and issubclass(found, BaseException):
                send({"error_class": lineage(found)})
            else:
                try:
                    send({"value": encode(found)})
                except NotPlain:
                    send({"object": True})
        except BaseException as error:
            send({"error": described(error)})


def left(argument):
    """An argument after the call; None if it is not plain: then it was the program's own."""
    try:
        return encode(argument)
    except NotPlain:
        return None


def own_names():
    return [name for name in list(NAMESPACE) if type(name) is str and name not in _NOT_ITS_OWN]


def described(error):
    return [lineage(type(error)), str(error)[:300]]


def lineage(kind):
    """Names of an error's classes, most special first, and whether each is Python's own."""
    return [
        [each.__name__, each.__module__ == "builtins"]
        for each in kind.__mro__
        if issubclass(each, BaseException)
    ]


class Remote:
    """A function or another object of the candidate's, as the tests see it."""

    def __init__(self, path):
        self._path = path

    def __call__(self, *args, **kwargs):
        reply = asked(
            {
                "path": self._path,
                "args": [encode(a) for a in args],
                "kwargs": {k: encode(v) for k, v in kwargs.items()},
            }
        )
        for given, changed in zip(args, reply["args"]):  # noqa: B905 - the candidate may lie about their number
            changed = decode(changed)
            if type(given) is type(changed) and isinstance(given, (list, bytearray)):
                given[:] = changed
            elif type(given) is type(changed) and (
                isinstance(given, dict) or (isinstance(given, set) and given != changed)
            ):
                given.clear()
                given.update(changed)
        PROGRAM_NAMES.update(map(str, reply.get("names", ())))
        return decode(reply["value"])

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return look([*self._path, name])


PROGRAM_NAMES = set()  # as the candidate says; the tester's


class Names(dict):
    """The tests' namespace: what they define, then the program's names, then Python's."""

    def __missing__(self, name):
        if name in PROGRAM_NAMES:
            return look([name])
        raise KeyError(name)


def look(path):
    """What the program has there now: a plain value, a class of errors, a module, or a Remote.

    A module is the tester's own, of the standard library.
    """
    reply = asked({"path": path})
    if "value" in reply:
        return decode(reply["value"])
    if "module" in reply and str(reply["module"]).partition(".")[0] in sys.stdlib_module_names:
        return importlib.import_module(reply["module"])
    return error_class(reply["error_class"]) if "error_class" in reply else Remote(path)


def asked(request):
    send(request)
    return answered()


def answered():
    """The candidate's reply; its error is raised, by the first of its classes that can be made."""
    reply = receive()
    if "error" in reply:
        names, message = reply["error"]
        raise error_of(error_class(names), message)
    return reply


def error_of(kind, message):
    for each in kind.__mro__:
        for arguments in ((message,), ("", b"", 0, 0, message)):  # UnicodeDecodeError wants five
            try:
                return each(*arguments)
            except TypeError:
                continue
    return RuntimeError(message)


OWN_ERRORS = {}  # the program's classes of errors, as the tests see them: (parent, name) -> class


def error_class(names):
    """A class for a lineage(): Python's, or one made for the program's.

    Leaving Python is an error.
    """
    kind = None
    for name, is_builtin in reversed(names):
        python = getattr(builtins, name, None) if is_builtin else None
        if isinstance(python, type) and issubclass(python, Exception):
            kind = python
        elif not is_builtin or name not in ("BaseException", "BaseExceptionGroup"):
            parent = kind or RuntimeError
            kind = OWN_ERRORS.setdefault((parent, name), type(name, (parent,), {}))
    return kind or RuntimeError


def tested_names(tree):
    """Names the tests take from outside: by statements, or if these take none, by functions."""
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    made |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    statements = [
        node
        for node in tree.body
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    for part in (ast.Module(statements, []), tree):
        found = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)} - made
        if found:
            return found
    return set()


def tester():
    """Execute the tests and say how it went."""
    sys.set_int_max_str_digits(0)
    tests, verdict = own_input(), os.dup(1)
    silence()
    try:
        PROGRAM_NAMES.update(map(str, answered()["names"]))
        tree = ast.parse(tests)
        tested = tested_names(tree)
        if tested and tested <= set(dir(builtins)) and not tested & PROGRAM_NAMES:
            # In one module Python's own function would be tested, and pass.
            raise NameError(
                "the program defines none of the names that are tested: "
                f"{', '.join(sorted(tested))}"
            )
        exec(compile(tree, "tests", "exec"), Names(__name__="tests"))
    except BaseException as error:
        send({"passed": False, "message": f"{type(error).__name__}: {error}"[:300]}, verdict)
        return
    send({"passed": True, "message": ""}, verdict)


def own_input():
    return sys.stdin.buffer.read().decode()


def silence():
    """Whatever is printed from here on goes nowhere."""
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


IN, OUT = int(sys.argv[2]), int(sys.argv[3])
{"candidate": candidate, "tester": tester}[sys.argv[1]]()
