"""An assistant on the device: it calculates, keeps notes and knows the time. No server, no network.

Each step of the model is one JSON object, a call of a tool or the answer. A JSON schema allows nothing
else, so any instruct model can use the tools, whether it was trained for tools or not. The oldest turns
are dropped when the conversation no longer fits. Without a question the program converses on the
terminal.

Run:  python examples/08_assistant.py models/tiny notes.json "What is 12 + 30?"
"""

import argparse
import ast
import inspect
import json
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cospec
from cospec.errors import PromptTooLongError

STEPS = 4
"""Calls of tools before the model must answer."""
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Compute +, -, *, / and % of numbers."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.UnaryOp):
            return OPERATORS[type(node.op)](value(node.operand))
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"not arithmetic: {ast.unparse(node)}")

    return f"{value(ast.parse(expression, mode='eval').body):g}"


def now() -> str:
    """Tell date and time."""
    return time.strftime("%A %Y-%m-%d %H:%M")


class Notes:
    """Notes in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add_note(self, text: str) -> str:
        """Remember a text."""
        notes = [*self._read(), text]
        self.path.write_text(json.dumps(notes, indent=1), encoding="utf-8")
        return f"{len(notes)} notes"

    def list_notes(self) -> str:
        """Read all notes."""
        return json.dumps(self._read())

    def _read(self) -> list[str]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []


class Assistant:
    """Answers questions with a bundle and tools.

    Args:
        session: of a bundle with a chat template.
        tools: functions with text arguments; the docstring says what they do.
    """

    def __init__(self, session: cospec.Session, tools: list[Callable[..., str]]) -> None:
        self.session = session
        self.tools = {tool.__name__: tool for tool in tools}
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str) -> str:
        """Return the answer to a question, after the tools that the model wants."""
        self.messages.append({"role": "user", "content": question})
        for left in reversed(range(STEPS + 1)):
            step = self._step(may_call=left > 0)
            if "answer" in step:
                return step["answer"]
            result = self._call(**step)
            print(f"  [{step['tool']}: {result}]")
            self.messages.append({"role": "user", "content": f"Result: {result}"})
        raise AssertionError("the last step is an answer")

    def _step(self, *, may_call: bool) -> dict[str, str]:
        """Let the model write one step."""
        calls = [self._schema(name) for name in self.tools] if may_call else []
        answer = {"answer": {"type": "string", "maxLength": 400}}
        schema = {"anyOf": [*calls, _object(answer)]}
        while True:
            prompt = [{"role": "system", "content": self._instructions()}, *self.messages]
            try:
                done = self.session.generate(prompt, json_schema=schema, max_tokens=200)
                break
            except PromptTooLongError:
                if len(self.messages) == 1:
                    raise
                del self.messages[0]
        if not done.is_complete:  # at the limit of tokens
            return {"answer": "That took too long."}
        self.messages.append({"role": "assistant", "content": done.text})
        return json.loads(done.text)

    def _call(self, tool: str, **arguments: str) -> str:
        """Run a tool; what goes wrong is told to the model."""
        try:
            return self.tools[tool](**arguments)
        except (ValueError, SyntaxError, ArithmeticError, LookupError) as error:
            return f"error: {error}"

    def _schema(self, name: str) -> dict[str, Any]:
        names = inspect.signature(self.tools[name]).parameters
        texts = {each: {"type": "string", "maxLength": 200} for each in names}
        return _object({"tool": {"const": name}, **texts})

    def _instructions(self) -> str:
        tools = [f"{name}: {inspect.getdoc(tool)}" for name, tool in self.tools.items()]
        return f"Reply in JSON: call a tool or answer. Tools: {' '.join(tools)}"


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these keys and no others."""
    closed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


def main() -> None:
    """Answer the questions of the command line, or converse."""
    parser = argparse.ArgumentParser(description="An assistant on the device.")
    parser.add_argument("bundle", help="folder of a bundle, or hf://org/name")
    parser.add_argument("notes", type=Path, help="file of the notes")
    parser.add_argument("question", nargs="*")
    given = parser.parse_args()
    notes = Notes(given.notes)
    tools = [calculate, now, notes.add_note, notes.list_notes]
    assistant = Assistant(cospec.load(given.bundle), tools)
    for question in given.question or iter(lambda: input("> "), ""):
        print(assistant.ask(question))


if __name__ == "__main__":
    main()
