"""Conversations for benchmarks: real English prose that every machine has, the docstrings of Python's own library.

The prose is 1.4 MB and so comes again; one word in sixty is replaced by one that never comes again (a name, a
number), since in real data new words keep coming.
"""

import ast
import json
import random
import re
import sysconfig
from pathlib import Path

CONVERSATION_BYTES = 1100


def sentences() -> list[str]:
    """Return the sentences of the library's docstrings."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                split = re.split(r"(?<=[.?!])\s+", re.sub(r"\s+", " ", text))
                found += [sentence for sentence in split if 20 < len(sentence) < 300]
    return found


def new_word(draw: random.Random) -> str:
    """Return a word that hardly comes again."""
    if draw.random() < 0.5:
        return str(draw.randint(0, 10**7))
    return "".join(draw.choice("etaoinshrdlucmfwypvbgk") for _ in range(draw.randint(5, 10))).capitalize()


def write_conversations(path: Path, count: int, seed: int = 0) -> int:
    """Write LLaVA records of about 1.1 KB, 1 to 4 pairs each, with pictures `pics/N.jpg`; return the bytes."""
    draw, prose = random.Random(seed), sentences()

    def sentence() -> str:
        words = draw.choice(prose).split(" ")
        return " ".join(new_word(draw) if draw.random() < 1 / 60 else word for word in words)

    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            turns: list[dict[str, str]] = []
            while sum(len(turn["value"]) for turn in turns) < CONVERSATION_BYTES * 0.6 and len(turns) < 8:
                question = ("" if turns else "<image>\n") + sentence()
                answer = (" " if draw.random() < 0.9 else "\n").join(sentence() for _ in range(draw.randint(1, 4)))
                answer += " It’s a “café” – naïve." if draw.random() < 0.1 else ""
                turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            record = {"id": f"{number:09d}", "image": f"pics/{number:09d}.jpg", "conversations": turns}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path.stat().st_size
