"""Damage sdekit's mathematics and see whether ``sdekit verify`` notices.

    python benchmarks/mutate_theory.py [--mutations 120] [--workers 2]

Each mutation is one change of a formula in ``sde.py``, ``processes.py`` or ``coordinates.py``, found by
walking their syntax trees: a sign (``a + b`` to ``a − b``, ``−a`` to ``a``), a factor 2 (a number or a
returned value doubled), an operation (``a · b`` to ``a / b``) or a swap (the scale ``s`` and the noise
``σ``, the drift ``f`` and the diffusion ``g``, …). Conditions, messages, indices and shapes are left
alone. For each, a copy of the package is damaged and its claims are tried until one is not as
expected. A run that was stopped goes on, as long as the package stays the same.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "mutations.json"
FILES = ("processes.py", "sde.py", "coordinates.py")
PAIRS = (("scale", "sigma"), ("std", "sigma"), ("f", "g"), ("h", "clock"), ("s", "n"), ("a", "b"))
SWAPS = {b: a for a, b in PAIRS} | {a: b for a, b in PAIRS}
LOCAL = ("s", "n", "a", "b")  # which of them are names of variables
# Calls whose arguments are shapes, counts or checks, not mathematics.
SHAPES = ("reshape", "flatten", "expand", "zeros", "range", "einsum", "stack", "isinstance")
PATIENCE = 600  # seconds


class Place(NamedTuple):
    """A mutation: where it is and what it does."""

    file: str
    index: int
    where: str
    what: str


class Mutator(ast.NodeTransformer):
    """Walk a file, list the places that can be damaged and damage one of them.

    Args:
        file: Name of the file.
        wanted: Index of the place that is damaged; with −1 none is.
    """

    def __init__(self, file: str, wanted: int = -1) -> None:
        self.file, self.wanted = file, wanted
        self.places: list[Place] = []
        self._scope: list[str] = []
        self._variables: set[str] = set()

    def _damage(self, node: ast.expr | ast.Return, what: str) -> bool:
        index = len(self.places)
        where = f"{'.'.join(self._scope)} line {node.lineno}"
        self.places.append(Place(self.file, index, where, what))
        return index == self.wanted

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Enter a class; what is outside of methods stays."""
        self._scope.append(node.name)
        node.body = [self.visit(n) if isinstance(n, ast.FunctionDef) else n for n in node.body]
        self._scope.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Enter a function that is mathematics."""
        if node.name.startswith(("__", "check_", "_check")):
            return node
        self._scope.append(node.name)
        stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
        self._variables = {n.id for n in stored if isinstance(n.ctx, ast.Store)}
        node.body = [self.visit(statement) for statement in node.body]  # no defaults, no types
        self._scope.pop()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        """Pass over the condition."""
        node.body = [self.visit(statement) for statement in node.body]
        node.orelse = [self.visit(statement) for statement in node.orelse]
        return node

    def _alone(self, node: ast.AST) -> ast.AST:
        return node

    visit_Raise = visit_Compare = visit_Subscript = visit_JoinedStr = visit_Assert = _alone

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Pass over the type."""
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Swap a method."""
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method in SHAPES or getattr(node.func, "id", "") in SHAPES:
            return node
        swap = method in SWAPS and method not in LOCAL
        if swap and self._damage(node, f".{method} → .{SWAPS[method]}"):
            assert isinstance(node.func, ast.Attribute)
            node.func.attr = SWAPS[method]
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Swap a variable, for one that there is: Python itself would notice any other."""
        swap = node.id in LOCAL and SWAPS[node.id] in self._variables
        if (
            swap
            and isinstance(node.ctx, ast.Load)
            and self._damage(node, f"{node.id} → {SWAPS[node.id]}")
        ):
            node.id = SWAPS[node.id]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Change a sign or an operation."""
        self.generic_visit(node)
        swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
        after = swaps.get(type(node.op))
        if after and self._damage(node, f"{type(node.op).__name__} → {after.__name__}"):
            node.op = after()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Drop a minus."""
        self.generic_visit(node)
        minus = isinstance(node.op, ast.USub)
        return node.operand if minus and self._damage(node, "minus dropped") else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Double a number."""
        number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        if number and node.value and self._damage(node, f"{node.value} → {2 * node.value}"):
            return ast.Constant(2 * node.value)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        """Double a result."""
        if node.value is None or isinstance(node.value, ast.Constant):
            return node
        formula = isinstance(node.value, ast.BinOp | ast.UnaryOp | ast.Call)
        double = formula and self._damage(node, "result doubled")
        node.value = self.visit(node.value)
        if double:
            node.value = ast.BinOp(ast.Constant(2), ast.Mult(), node.value)
        return node


def places(file: str) -> list[Place]:
    """List the mutations of a file."""
    mutator = Mutator(file)
    mutator.visit(ast.parse((ROOT / "sdekit" / file).read_text(encoding="utf-8")))
    return mutator.places


def damaged(place: Place) -> str:
    """Return the text of a file with one mutation."""
    tree = ast.parse((ROOT / "sdekit" / place.file).read_text(encoding="utf-8"))
    tree = Mutator(place.file, place.index).visit(tree)
    return ast.unparse(ast.fix_missing_locations(tree))


def attempt(package: Path, say: Connection) -> None:
    """Try the claims of a copy of the package and say which noticed; in a process of its own."""
    sys.path.insert(0, str(package))
    try:
        from sdekit.theory import choose, verify

        # Those that are near the damaged files first: most mutations are noticed at once.
        near = {"process", "coordinates", "reverse", "forward"}
        claims = sorted(choose(), key=lambda claim: near.isdisjoint(claim.tags))
        last = verify(claims, stop=True)[-1]
        say.send((None, "") if last.good else (last.claim.id, last.verdict))
    except BaseException as error:
        say.send(("import", f"{type(error).__name__}: {error}"[:200]))


def run(place: Place) -> dict[str, Any]:
    """Try one mutation."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "sdekit"
        shutil.copytree(ROOT / "sdekit", package)
        (package / place.file).write_text(damaged(place), encoding="utf-8")
        hear, say = context.Pipe(duplex=False)
        process = context.Process(target=attempt, args=(Path(folder), say))
        process.start()
        say.close()
        # What does not end is not counted as noticed: nobody said anything.
        noticed_by, how = hear.recv() if hear.poll(PATIENCE) else (None, "did not end")
        process.kill()
        process.join()
    return {**place._asdict(), "noticed_by": noticed_by, "how": how}


def write(results: Sequence[dict[str, Any]], possible: int, arguments: argparse.Namespace) -> None:
    """Write what is known."""
    from sdekit.records import provenance, write_json

    noticed = sum(result["noticed_by"] is not None for result in results)
    write_json(
        {
            **provenance(("sdekit", "torch", "numpy", "scipy")),
            "configuration": {"seed": arguments.seed, "files": FILES, "possible": possible},
            "noticed": noticed,
            "tried": len(results),
            "mutations": list(results),
        },
        arguments.out,
    )


def main() -> None:
    """Run what is missing and print the share that was noticed."""
    parser = argparse.ArgumentParser(description="Damage sdekit's mathematics; does verify notice?")
    parser.add_argument("--mutations", type=int, default=120, help="how many, at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    # Before the fork, so that each attempt finds them loaded; sdekit itself must not be.
    import scipy.integrate  # noqa: F401
    import torch
    import torchdiffeq  # noqa: F401
    import torchsde  # noqa: F401
    from tqdm import tqdm

    torch.set_num_threads(1)
    every = [place for file in FILES for place in places(file)]
    chosen = random.Random(arguments.seed).sample(every, min(arguments.mutations, len(every)))
    done: dict[Place, dict[str, Any]] = {}
    digest = hashlib.sha256()
    for path in sorted((ROOT / "sdekit").rglob("*.py")):
        digest.update(path.read_bytes())
    partial = ROOT / "results" / f"mutations-{digest.hexdigest()[:12]}.jsonl"
    partial.parent.mkdir(exist_ok=True)
    if partial.exists():
        for line in partial.read_text(encoding="utf-8").splitlines():
            old = json.loads(line)
            done[Place(*(old[name] for name in Place._fields))] = old
    missing = [place for place in chosen if place not in done]
    with ThreadPool(arguments.workers) as pool:
        for found in tqdm(pool.imap_unordered(run, missing), total=len(missing)):
            done[Place(*(found[name] for name in Place._fields))] = found
            with partial.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    results = [done[place] for place in chosen]
    write(results, len(every), arguments)
    for result in results:
        if result["noticed_by"] is None:
            print("not noticed:", result["file"], result["where"], result["what"], result["how"])
    noticed = sum(result["noticed_by"] is not None for result in results)
    print(f"{noticed} of {len(results)} mutations are noticed")
    print(Counter(r["how"] if r["how"] in ("fails", "error") else "import" for r in results))


if __name__ == "__main__":
    main()
