"""Products of fp32 rows summed in fp64, in an order fixed by the width: the same bits on every processor.

numba neither reorders a sum to use vector registers nor believes that two rows do not overlap, so these loops are
written as vector operations; where a processor has narrower registers they are split, and the result stays.
Rows are given by address; their width is a multiple of 32 (`rotation.PAD`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Numbers a register, and registers a step.
WIDE = 8
STEPS = 4

_I32, _I64, _FLOAT, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_NARROW, _VECTOR = ir.VectorType(_FLOAT, WIDE), ir.VectorType(_DOUBLE, WIDE)


def _address(b: Any, base: Any, step: Any, which: int) -> Any:
    """Pointer to 8 fp32: number `which` of a step."""
    offset = b.add(b.mul(step, ir.Constant(_I64, 4 * WIDE * STEPS)), ir.Constant(_I64, 4 * WIDE * which))
    return b.inttoptr(b.add(base, offset), _NARROW.as_pointer())


def _load(b: Any, pointer: Any) -> Any:
    """8 fp32 as fp64."""
    loaded = b.load(pointer)
    loaded.align = 4
    return b.fpext(loaded, _VECTOR)


def _total(b: Any, sums: list[Any]) -> Any:
    """Sum of 4 registers: register to register, then half to half."""
    whole = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
    width = WIDE
    while width > 1:
        width //= 2
        halves = [
            b.shuffle_vector(whole, whole, ir.Constant(ir.VectorType(_I32, width), list(range(first, first + width))))
            for first in (0, width)
        ]
        whole = b.fadd(*halves)
    return b.extract_element(whole, ir.Constant(_I32, 0))


def _loop(b: Any, width: Any, body: Any) -> Any:
    """Add what `body(step, which)` gives, 8 fp64 each, over a row of `width` numbers."""
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    steps = b.udiv(width, ir.Constant(_I64, WIDE * STEPS))
    b.branch(loop)
    b.position_at_end(loop)
    step = b.phi(_I64)
    step.add_incoming(ir.Constant(_I64, 0), before)
    sums = [b.phi(_VECTOR) for _ in range(STEPS)]
    added = [b.fadd(sums[which], body(step, which)) for which in range(STEPS)]
    following = b.add(step, ir.Constant(_I64, 1))
    step.add_incoming(following, loop)
    for which in range(STEPS):
        sums[which].add_incoming(ir.Constant(_VECTOR, [0.0] * WIDE), before)
        sums[which].add_incoming(added[which], loop)
    b.cbranch(b.icmp_unsigned("<", following, steps), loop, after)
    b.position_at_end(after)
    return _total(b, added)


@intrinsic  # type: ignore[untyped-decorator]
def _dot(typing_context: Any, left: Any, right: Any, width: Any) -> Any:
    """Product of two rows (addresses), fp64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, second, count = args

        def body(step: Any, which: int) -> Any:
            return b.fmul(_load(b, _address(b, first, step, which)), _load(b, _address(b, second, step, which)))

        return _loop(b, count, body)

    return types.float64(types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _subtract(typing_context: Any, source: Any, share: Any, centroid: Any, target: Any, width: Any) -> Any:
    """target = source - share x centroid (addresses; target may be source), rounded to fp32; its square, fp64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        start, factor, row, out, count = args
        one = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), factor, ir.Constant(_I32, 0))
        factors = b.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, WIDE), [0] * WIDE))

        def body(step: Any, which: int) -> Any:
            taken = b.fmul(factors, _load(b, _address(b, row, step, which)))
            left = b.fptrunc(b.fsub(_load(b, _address(b, start, step, which)), taken), _NARROW)
            b.store(left, _address(b, out, step, which)).align = 4
            wide = b.fpext(left, _VECTOR)
            return b.fmul(wide, wide)

        return _loop(b, count, body)

    return types.float64(types.int64, types.float64, types.int64, types.int64, types.int64), codegen


# numba's types for mypy ask for the typing context, which callers do not give.
dot: Any = _dot
subtract: Any = _subtract
