"""Products of 8-bit vectors on processors with AVX2: 48 items with 4 queries at once, in registers.

`vpmaddubsw` multiplies 32 unsigned by 32 signed bytes and adds neighbours, and `vpaddw` adds those sums, 16 items a
register. Sums wrap around at 16 bits, so only the whole product must fit them: codes are rounded so that no two have a
product beyond (`panels.py`). Item codes are stored as c + 128; the 128 sum(q) that this adds is taken off at the start.
Compiled at run time by numba, so no C compiler is needed.

W width, in steps of 2  P stripes of 48 items  T tiles of 4 queries
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES, REGISTERS, QUERIES = 16, 3, 4
STRIPE = LANES * REGISTERS
# Components of a vector a step.
STEP = 2

I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
SUMS, BYTES, PAIRS = ir.VectorType(I16, LANES), ir.VectorType(ir.IntType(8), 2 * LANES), ir.VectorType(I32, 8)


def available() -> bool:
    """Whether this processor has the instructions."""
    return bool(llvm.get_host_cpu_features().get("avx2"))


class _Emitter:
    """LLVM instructions on memory at addresses that are int64."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def _at(self, address: Any, offset: int, kind: Any) -> Any:
        return self.b.inttoptr(self.b.add(address, ir.Constant(I64, offset)), kind.as_pointer())

    def load(self, address: Any, offset: int, kind: Any) -> Any:
        """A value that need not be aligned, `offset` bytes from an address."""
        loaded = self.b.load(self._at(address, offset, kind))
        loaded.align = 1
        return loaded

    def store(self, value: Any, address: Any, offset: int) -> None:
        """The other way."""
        self.b.store(value, self._at(address, offset, value.type)).align = 1

    def spread(self, scalar: Any, kind: Any) -> Any:
        """A vector of one number."""
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))

    def call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """An intrinsic function of LLVM."""
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(self.b.module.declare_intrinsic(name, (), function), arguments)

    def products(self, items: Any, queries: Any, steps: Any, starts: list[Any]) -> list[Any]:
        """The sums of 4 queries x 3 registers of items, over all steps."""
        b, zero = self.b, ir.Constant(I64, 0)
        before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.branch(loop)
        b.position_at_end(loop)
        step, sums = b.phi(I64), [b.phi(SUMS) for _ in starts]
        items_step = b.add(items, b.mul(step, ir.Constant(I64, STEP * STRIPE)))
        queries_step = b.add(queries, b.mul(step, ir.Constant(I64, 4 * QUERIES)))
        codes = [self.load(items_step, STEP * LANES * r, BYTES) for r in range(REGISTERS)]
        added = []
        for q in range(QUERIES):
            pair = b.bitcast(self.spread(self.load(queries_step, 4 * q, I32), PAIRS), BYTES)
            for r in range(REGISTERS):
                product = self.call("llvm.x86.avx2.pmadd.ub.sw", SUMS, [codes[r], pair])
                added.append(b.add(sums[REGISTERS * q + r], product))
        following = b.add(step, ir.Constant(I64, 1))
        for value, start, result in zip([step, *sums], [zero, *starts], [following, *added], strict=True):
            value.add_incoming(start, before)
            value.add_incoming(result, loop)
        b.cbranch(b.icmp_signed("<", following, steps), loop, after)
        b.position_at_end(after)
        return added


def _tile_code(context: Any, b: Any, signature: Any, args: Any) -> Any:
    items, queries, steps, starts, bonus, limits, sums, above = args
    emit = _Emitter(b)
    begin = [emit.spread(emit.load(starts, 2 * q, I16), SUMS) for q in range(QUERIES)]
    found = emit.products(items, queries, steps, [start for start in begin for _ in range(REGISTERS)])
    added = [emit.load(bonus, 2 * LANES * r, SUMS) for r in range(REGISTERS)]
    for q in range(QUERIES):
        limit, bits = emit.spread(emit.load(limits, 2 * q, I16), SUMS), ir.Constant(I64, 0)
        for r in range(REGISTERS):
            total = emit.call("llvm.sadd.sat.v16i16", SUMS, [found[REGISTERS * q + r], added[r]])
            emit.store(total, sums, 2 * (STRIPE * q + LANES * r))
            larger = b.zext(b.bitcast(b.icmp_signed(">", total, limit), I16), I64)
            bits = b.or_(bits, b.shl(larger, ir.Constant(I64, LANES * r)))
        emit.store(bits, above, 8 * q)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def _tile(
    typing_context: Any,
    items: Any,
    queries: Any,
    steps: Any,
    starts: Any,
    bonus: Any,
    limits: Any,
    sums: Any,
    above: Any,
) -> Any:
    """Products of a stripe with a tile, all arguments but `steps` addresses.

    Of `items` (steps, 48, 2) bytes and `queries` (steps, 4, 2, 2) bytes, each pair twice. `starts` (4,) is what a
    query's sums start at and `bonus` (48,) is added at the end, not beyond 32,767, both int16. Written are `sums`
    (4, 48) int16 and, for each query, in the bits of an int64 of `above`, which of them are above its `limits` (4,).
    """
    return types.void(items, queries, steps, starts, bonus, limits, sums, above), _tile_code


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Number of the lowest bit that is set, of at least one."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return _Emitter(b).call("llvm.cttz.i64", I64, [args[0], ir.Constant(I1, 1)])

    return types.int64(types.int64), codegen


# numba's types for mypy ask for the typing context, which callers do not give.
tile: Any = _tile
lowest_bit: Any = _lowest_bit
