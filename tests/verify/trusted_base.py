"""How much code a re-check runs: the trusted base of a verdict, in lines of `ir` and `verify` (which reads the .tflite).

    python tests/verify/trusted_base.py CERTIFICATE MODEL DATA.npz [PROOF]

A line of code holds more than a docstring or a comment. Counted is every such line of each function that runs, on import or
later: the whole function, with the branches not taken and the functions inside it. Not counted, and printed beside it, are
declarations (imports; the heads and fields of classes) and tables (assignments of modules), which are data. What else a module
executes on import is counted.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import sys
import threading
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LAYERS = ("ir", "verify")
SPACE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

Function = tuple[str, int, str]
"""(file, first line with its decorators, name)."""


def lines_of_code(source: str, tree: ast.Module) -> set[int]:
    """The lines that hold more than space, a comment or a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in SPACE for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= span(node)
    return lines


def span(node: ast.stmt) -> set[int]:
    """Its lines, decorators included."""
    above = [d.lineno for d in getattr(node, "decorator_list", ())]
    return set(range(min([node.lineno, *above]), (node.end_lineno or node.lineno) + 1))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """The functions of a module and of its classes, and none inside another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from functions(child)


def count(path: Path, ran: set[Function]) -> dict[str, int]:
    """Lines of one module: `run`, `declared`, `tables`, and of `all` its code."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    code = lines_of_code(source, tree)
    run, rest = set[int](), set(code)
    for function in functions(tree):
        lines = span(function) & code
        rest -= lines
        if (str(path), min(span(function)), function.name) in ran:
            run |= lines
    declared, tables = set[int](), set[int]()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef):
            declared |= span(node) & rest
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            tables |= span(node) & rest
    other = rest - declared - tables
    return {"run": len(run | other), "declared": len(declared), "tables": len(tables), "all": len(code)}


def traced(arguments: list[str]) -> tuple[bool, set[Function]]:
    """Whether the certificate is accepted, and which functions ran, of every module from the first import on."""
    ran: set[Function] = set()

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        ran.add((code.co_filename, code.co_firstlineno, code.co_name))

    threading.settrace(tracer)
    sys.settrace(tracer)
    numpy: Any = importlib.import_module("numpy")
    recheck: Any = importlib.import_module("cactus_edge.verify.recheck").recheck
    certificate, model, proof = (Path(a).read_bytes() if a else None for a in (*arguments[:2], (*arguments[3:], "")[0]))
    data = numpy.load(arguments[2])
    report = recheck(certificate, model, data["x"], data["y"], proof=proof)
    sys.settrace(None)
    return report.accepted, ran


def main(arguments: list[str]) -> int:
    accepted, ran = traced(arguments)
    root = Path(importlib.import_module("cactus_edge").__file__ or "").parent
    modules = {
        p.relative_to(root).as_posix(): count(p, ran) for layer in LAYERS for p in sorted((root / layer).glob("*.py"))
    }
    total = {key: sum(lines[key] for lines in modules.values()) for key in ("run", "declared", "tables", "all")}
    print(json.dumps({"accepted": accepted, **total, "modules": {name: m["run"] for name, m in modules.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
