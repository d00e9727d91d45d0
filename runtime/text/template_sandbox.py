"""Jinja's sandbox with a budget: every block, call, filter and operator is paid for.

Jinja also computes constant expressions while it compiles, without any limit; that is switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, MacroRef, operators
from jinja2.runtime import Context, Macro
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup

from .template_budget import Budget, pay_method, pay_operator, pay_percent_format
from .template_filters import TEST_PAYMENTS, pay_filter, pay_lipsum

_PLAIN = (str, bytes, list, tuple, dict, int, float, range)
_METHOD_TYPES = (BuiltinMethodType, MethodType)
_BODIES = ("body", "else_")  # blocks of their own, which pay for themselves


_UNITS_OF_NODE: dict[type[nodes.Node], int] = {
    **dict.fromkeys((nodes.List, nodes.Tuple, nodes.Dict), 15),
    **dict.fromkeys((nodes.Name, nodes.Getattr, nodes.Getitem), 4),
}
"""What it costs to execute a node of a template; 2 for all others."""


class BudgetContext(Context):
    """The variables of one rendering, with its budget."""

    budget: Budget

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budget = Budget()

    def derived(self, locals: dict[str, Any] | None = None) -> BudgetContext:
        """Return a context for a part of the template; it has the same budget."""
        self.budget.spend(len(self.parent) + len(self.vars))
        context = super().derived(locals)
        assert isinstance(context, BudgetContext)
        context.budget = self.budget
        return context


class _CodeGenerator(CodeGenerator):
    """Has each block pay when it is entered, and the expressions that Jinja computes by itself."""

    _of_defaults = 0  # what the default values of a macro cost when it is called

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        body = list(nodes)
        cost = 2 + self._of_defaults + sum(map(_cost, body))
        self._of_defaults = 0
        self.writeline(f"context.budget.spend({cost})")
        super().blockvisit(body, frame)

    def macro_body(
        self, node: nodes.Macro | nodes.CallBlock, frame: Frame
    ) -> tuple[Frame, MacroRef]:
        self._of_defaults = sum(map(_cost, node.defaults))
        return super().macro_body(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        if node.test is not None:  # runs for each element, also for those that have no body
            # The name is written as it is.
            paid = nodes.EnvironmentAttribute(f"pay(context, {_cost(node.test)})")
            node.test = nodes.And(paid, node.test)
        super().visit_For(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        short = any(_is_short(part) for part in (node.expr, *(op.expr for op in node.ops)))
        if short and all(op.op in ("eq", "ne") for op in node.ops):
            super().visit_Compare(node, frame)
            return
        self.write("(")
        self._paid("read", node.expr, frame)
        for op in node.ops:
            self.write(f" {operators[op.op]} ")
            self._paid("read", op.expr, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        if frame.eval_ctx.volatile:
            name = "(markup_join if context.eval_ctx.volatile else str_join)"
        else:
            name = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        self.write(f"{name}((")
        for part in node.nodes:
            self._paid("write", part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            self.write("environment.getitem(")
            self.visit(node.node, frame)
            self.write(", ")
            self._paid("write", node.arg, frame)  # an error writes out a key that is missing
            self.write(")")
            return
        self._paid("slice", node.node, frame)
        self.write("[")
        self.visit(node.arg, frame)
        self.write("]")

    def _paid(self, what: str, node: nodes.Expr, frame: Frame) -> None:
        if _is_short(node):
            self.visit(node, frame)
            return
        self.write(f"environment.pay_{what}(context, ")
        self.visit(node, frame)
        self.write(")")


def _is_short(node: nodes.Expr) -> bool:
    """Say whether a value is a literal, whose length the template pays for with its own."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(_is_short, node.items))
    return isinstance(node, nodes.Const)


def _cost(node: nodes.Node) -> int:
    """Return what a node costs each time it is executed, without the blocks within it."""
    if isinstance(node, nodes.TemplateData):
        return 2 + len(node.data) // 2
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        return 2 + len(node.value) // 2
    cost = _UNITS_OF_NODE.get(type(node), 2)
    for name, value in node.iter_fields():
        if name not in _BODIES:
            parts = value if isinstance(value, list) else [value]
            cost += sum(_cost(part) for part in parts if isinstance(part, nodes.Node))
    return cost


class _Formatter(SandboxedFormatter):
    """`str.format` that pays."""

    def __init__(self, environment: BudgetEnvironment, budget: Budget, **kwargs: Any) -> None:
        super().__init__(environment, **kwargs)
        self._budget = budget

    def format_field(self, value: Any, format_spec: str) -> Any:
        pay_percent_format(self._budget, "%" + format_spec, value)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._budget.write(self._budget.size(value))
        return super().convert_field(value, conversion)


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    """The same for `Markup.format`."""


@pass_context
def _finalize(context: Any, value: Any) -> Any:
    """Pay for what the template prints."""
    context.budget.write(context.budget.size(value))
    return value


class BudgetEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox; a rendering that costs too much ends with `TemplateCostError`."""

    intercepted_binops = frozenset(("+", "-", "*", "**", "%"))
    code_generator_class = _CodeGenerator
    context_class = BudgetContext

    def __init__(self, extensions: Iterable[Any] = ()) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=list(extensions),
            optimized=False,
            finalize=_finalize,
        )
        self.globals["lipsum"] = _paid(generate_lorem_ipsum, pay_lipsum)
        for name, function in self.filters.items():
            self.filters[name] = _paid(function, pay_filter(name))
        for name, pay in TEST_PAYMENTS.items():
            self.tests[name] = _paid(self.tests[name], pay)  # type: ignore[arg-type]

    def pay(self, context: Any, units: int) -> bool:
        """Pay for one element of a loop with a condition, which costs so many units itself."""
        context.budget.spend(units + 10)
        return True

    def pay_read(self, context: Any, value: Any) -> Any:
        """Pay for reading a value, and return it."""
        context.budget.read(value)
        return value

    def pay_write(self, context: Any, value: Any) -> Any:
        """Pay for writing a value out, and return it."""
        context.budget.write(context.budget.size(value))
        return value

    def pay_slice(self, context: Any, value: Any) -> Any:
        """Pay for a slice of a value, and return the value."""
        if isinstance(value, (str, bytes)):
            context.budget.write(len(value))
        elif hasattr(value, "__len__"):
            context.budget.references(len(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Pay for an operator, and compute it."""
        pay_operator(context.budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Pay for a call, and make it."""
        budget: Budget = context.budget
        budget.call()
        budget.references(len(args) + len(kwargs))
        if isinstance(function, Namespace):
            raise TypeError("a namespace cannot be called")  # Jinja would write all of it out
        if not isinstance(function, Macro):  # all others may go through their arguments
            count = sum(len(value) for value in args if hasattr(value, "__len__"))
            (budget.entries if isinstance(function, type) else budget.references)(count)
        if isinstance(function, _METHOD_TYPES) and isinstance(function.__self__, _PLAIN):
            given = list(args)
            pay_method(budget, function.__self__, function.__name__, (given, kwargs))
            return budget.made(super().call(context, function, *given, **kwargs))
        return budget.made(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a `str.format` or `str.format_map` that pays, or None for any other value."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        by_mapping = value.__name__ == "format_map"

        @pass_context
        def formatted(context: Any, *args: Any, **kwargs: Any) -> str:
            if by_mapping:
                (kwargs,), args = args, ()
            context.budget.write(20 * len(text))
            formatter: _Formatter
            if isinstance(text, Markup):
                formatter = _EscapeFormatter(self, context.budget, escape=text.escape)
            else:
                formatter = _Formatter(self, context.budget)
            written: str = type(text)(formatter.vformat(text, args, kwargs))
            return written

        return formatted


def _paid(
    function: Callable[..., Any], pay: Callable[[Budget, list[Any], dict[str, Any]], None]
) -> Callable[..., Any]:
    """Return `function` behind `pay`, which may also change its arguments.

    The result takes the context, so Jinja never computes it at compile time.
    """
    wanted = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def paid(context: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.budget
        budget.call()
        given = list(args)
        pay(budget, given, kwargs)
        if wanted == "context":
            given.insert(0, context)
        elif wanted == "eval_context":
            given.insert(0, context.eval_ctx)
        elif wanted == "environment":
            given.insert(0, context.environment)
        return budget.made(function(*given, **kwargs))

    return paid
