"""Products of 8-bit vectors: 48 items with 4 queries at once, in registers, 16 items each.

With AVX-512 VNNI, `vpdpbusd` multiplies 64 unsigned by 64 signed bytes and adds fours of products into 32 bits. With
AVX2, `vpmaddubsw` multiplies 32 by 32 and adds neighbours, and `vpaddw` adds those sums in 16 bits. Sums wrap around,
so only the whole product must fit: codes are rounded so that no two have a product beyond (`panels.py`). Item codes
are stored as c + 128; the 128 sum(q) that this adds is taken off at the start.

W width, in steps of 4 or 2  P stripes of 48 items  T tiles of 4 queries
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hymirec.simd import I32, I64, LANES, VECTOR, Emitter

REGISTERS, QUERIES = 3, 4
STRIPE = LANES * REGISTERS
# Components of a vector a step, with sums of 32 bits and of 16.
WIDE_STEP, NARROW_STEP = 4, 2

I1, I16 = ir.IntType(1), ir.IntType(16)
SHORTS, BYTES, PAIRS = ir.VectorType(I16, LANES), ir.VectorType(ir.IntType(8), 2 * LANES), ir.VectorType(I32, 8)


def _wide_product(emit: Emitter, total: Any, codes: Any, query: Any) -> Any:
    return emit.multiply_add(total, codes, emit.spread(query))


def _wide_sum(emit: Emitter, total: Any, bonus: Any) -> Any:
    return emit.b.add(total, bonus)


def _narrow_product(emit: Emitter, total: Any, codes: Any, query: Any) -> Any:
    pair = emit.b.bitcast(emit.spread(query, PAIRS), BYTES)
    return emit.b.add(total, emit.call("llvm.x86.avx2.pmadd.ub.sw", SHORTS, [codes, pair]))


def _narrow_sum(emit: Emitter, total: Any, bonus: Any) -> Any:
    return emit.call("llvm.sadd.sat.v16i16", SHORTS, [total, bonus])


def _tile_code(context: Any, b: Any, signature: Any, args: Any) -> Any:
    """One tile; the type of the last argument says which of the two."""
    items, queries, steps, starts, bonus, limits, sums, above, number = args
    emit, registers, wide = Emitter(b), range(REGISTERS), number.type == I32
    kind, codes_kind = (VECTOR, VECTOR) if wide else (SHORTS, BYTES)
    product, add = (_wide_product, _wide_sum) if wide else (_narrow_product, _narrow_sum)
    step_bytes, size = (WIDE_STEP, 4) if wide else (NARROW_STEP, 2)

    def multiply(step: Any, values: list[Any]) -> list[Any]:
        items_step = b.add(items, b.mul(step, ir.Constant(I64, step_bytes * STRIPE)))
        queries_step = b.add(queries, b.mul(step, ir.Constant(I64, 4 * QUERIES)))
        codes = [emit.load(items_step, step_bytes * LANES * r, codes_kind) for r in registers]
        added = []
        for q in range(QUERIES):
            query = emit.load(queries_step, 4 * q, I32)
            added += [product(emit, values[REGISTERS * q + r], codes[r], query) for r in registers]
        return added

    start = [emit.spread(emit.load(starts, size * q, kind.element), kind) for q in range(QUERIES)]
    found = emit.loop(steps, [own for own in start for _ in registers], multiply)
    added = [emit.load(bonus, size * LANES * r, kind) for r in registers]
    for q in range(QUERIES):
        limit, bits = emit.spread(emit.load(limits, size * q, kind.element), kind), ir.Constant(I64, 0)
        for r in registers:
            total = add(emit, found[REGISTERS * q + r], added[r])
            emit.store(total, sums, size * (STRIPE * q + LANES * r))
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
    number: Any,
) -> Any:
    """Products of a stripe with a tile; `number` is one of the type of a sum, and all others but `steps` are addresses.

    Of `items` (steps, 48, 4 or 2) bytes and `queries` (steps, 4, 4) bytes, with sums of 16 bits two and the same two.
    `starts` (4,) is what a query's sums start at and `bonus` (48,) is added at the end, not beyond 32,767 in 16 bits.
    Written are `sums` (4, 48) and, for each query, in the bits of an int64 of `above`, which of them are above its
    `limits` (4,).
    """
    return types.void(items, queries, steps, starts, bonus, limits, sums, above, number), _tile_code


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Number of the lowest bit that is set, of at least one."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return Emitter(b).call("llvm.cttz.i64", I64, [args[0], ir.Constant(I1, 1)])

    return types.int64(types.int64), codegen


# numba's types for mypy ask for the typing context, which callers do not give.
tile: Any = _tile
lowest_bit: Any = _lowest_bit
