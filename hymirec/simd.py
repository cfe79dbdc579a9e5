"""Vector instructions for kernels that numba compiles: LLVM as the `codegen` of an `intrinsic` writes it.

No C compiler is needed, and a processor is asked for what it has when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

LANES = 16
I32, I64 = ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(I32, LANES)


def has_avx2() -> bool:
    """Whether this processor has integers in vectors of 32 bytes."""
    return bool(llvm.get_host_cpu_features().get("avx2"))


def has_vnni() -> bool:
    """Whether it multiplies and adds 64 pairs of bytes an instruction (AVX-512 VNNI)."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512f"))


class Emitter:
    """Instructions on vectors, of 16 32-bit lanes unless a kind is given, at addresses that are int64."""

    def __init__(self, builder: Any) -> None:
        llvm.initialize_native_asmparser()
        self.b = builder
        self._multiply_add = ir.InlineAsm(
            ir.FunctionType(VECTOR, [VECTOR] * 3), "vpdpbusd $3, $2, $0", "=v,0,v,v", side_effect=False
        )

    def at(self, address: Any, offset: Any, kind: Any = VECTOR) -> Any:
        """The pointer to what lies `offset` bytes (a number or a value) from an address."""
        offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        return self.b.inttoptr(self.b.add(address, offset), kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: Any = VECTOR) -> Any:
        """A vector, or another kind of value, that need not be aligned."""
        loaded = self.b.load(self.at(address, offset, kind))
        loaded.align = 1
        return loaded

    def store(self, value: Any, address: Any, offset: Any) -> None:
        """The other way."""
        self.b.store(value, self.at(address, offset, value.type)).align = 1

    def constant(self, lanes: list[int]) -> Any:
        """A vector of 16 constants."""
        return ir.Constant(VECTOR, lanes)

    def spread(self, scalar: Any, kind: Any = VECTOR) -> Any:
        """A vector of the same number."""
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))

    def call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """An intrinsic function of LLVM."""
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(self.b.module.declare_intrinsic(name, (), function), arguments)

    def multiply_add(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """Each lane plus the products of its four unsigned with its four signed bytes: AVX-512 VNNI's `vpdpbusd`."""
        return self.b.call(self._multiply_add, [total, unsigned, signed])

    def loop(self, steps: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """What becomes of `start` after `steps` >= 1 rounds of `body(step, values)`."""
        b, zero = self.b, ir.Constant(I64, 0)
        before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.branch(loop)
        b.position_at_end(loop)
        step, values = b.phi(I64), [b.phi(value.type) for value in start]
        step.add_incoming(zero, before)
        results = body(step, values)
        following = b.add(step, ir.Constant(I64, 1))
        step.add_incoming(following, loop)
        for value, first, result in zip(values, start, results, strict=True):
            value.add_incoming(first, before)
            value.add_incoming(result, loop)
        b.cbranch(b.icmp_signed("<", following, steps), loop, after)
        b.position_at_end(after)
        return results
