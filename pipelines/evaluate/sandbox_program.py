"""Both ends of a test inside sandboxes; started by sandbox.py as `python -I -S -c <this file>
candidate|tester`.

The candidate's program and the tests run in two processes that share nothing but two pipes. The
tests call the candidate's functions over these; only plain values come back. So a program cannot
leave early with success, change `assert`, return an object that equals everything, or read the
expected values: all it can do is answer.

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
    for name, plain in _BY_REPR.items():
        if kind is plain:
            return {name: str(value)}
    if kind in (datetime.date, datetime.datetime):
        return {kind.__name__: value.isoformat()}
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
        return _SEQUENCES[kind]([decode(item) for item in body])
    if kind in _BY_REPR:
        return _BY_REPR[kind](body)
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


def candidate():
    """Execute the program, then answer calls until the tests are through."""
    sys.set_int_max_str_digits(0)
    namespace = {"__name__": "program"}
    source = own_input()
    silence()
    try:
        exec(compile(source, "program", "exec"), namespace)
        send({"ready": True})
    except BaseException as error:
        send({"error": [type(error).__name__, str(error)[:300]]})
        return
    while True:
        request = receive()
        try:
            arguments = [decode(value) for value in request["args"]]
            named = {name: decode(value) for name, value in request["kwargs"].items()}
            found = namespace[request["name"]]
            value = found(*arguments, **named) if request["call"] else found
            send({"value": encode(value), "args": [encode(a) for a in arguments]})
        except BaseException as error:
            send({"error": [type(error).__name__, str(error)[:300]]})


class Remote:
    """A function of the candidate's, as the tests see it."""

    def __init__(self, name):
        self._name = name

    def __call__(self, *args, **kwargs):
        send(
            {
                "name": self._name,
                "call": True,
                "args": [encode(a) for a in args],
                "kwargs": {k: encode(v) for k, v in kwargs.items()},
            }
        )
        reply = receive()
        if "error" in reply:
            raise_as(*reply["error"])
        for given, left in zip(args, reply["args"]):  # noqa: B905 - the candidate may lie about their number
            left = decode(left)
            if type(given) is type(left) and isinstance(given, (list, bytearray)):
                given[:] = left
            elif type(given) is type(left) and isinstance(given, (dict, set)):
                given.clear()
                given.update(left)
        return decode(reply["value"])


def raise_as(name, message):
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is AssertionError:
        kind = RuntimeError
    raise kind(f"{name}: {message}" if kind is RuntimeError else message)


def tester():
    """Execute the tests and say how it went."""
    sys.set_int_max_str_digits(0)
    tests, verdict = own_input(), os.dup(1)
    silence()
    try:
        reply = receive()
    except EOFError as error:
        reply = {"error": ["EOFError", str(error)]}
    if "error" in reply:
        send({"passed": False, "message": ": ".join(map(str, reply["error"]))}, verdict)
        return
    tree = ast.parse(tests)
    loaded = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    made |= {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    namespace = {"__name__": "tests"}
    for name in loaded - made - set(dir(builtins)):
        namespace[name] = (
            importlib.import_module(name) if name in sys.stdlib_module_names else Remote(name)
        )
    try:
        exec(compile(tree, "tests", "exec"), namespace)
    except BaseException as error:
        send({"passed": False, "message": f"{type(error).__name__}: {str(error)[:300]}"}, verdict)
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
