"""A compiled kernel: sums of the values of rows over the masks of examples, which are kept as bits.

Its inner loop is written in LLVM's instructions, since the words of a mask are themselves the masks of AVX-512 vectors:
one addition takes 8 rows, 16 in float32. Other CPUs take their own vectors.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from datamodels.lasso.compiled import jitable

_WIDTH = 512
"""Bits of a vector."""
_TOGETHER = 4
"""Examples that share each vector of values."""


def _sums(typing_context: Any, bits: Any, examples: Any, first: Any, values: Any) -> Any:
    """Sums of the values [64 words] over the masks bits[examples[first + k]] of four examples, as a tuple."""
    number, lanes = (ir.FloatType(), _WIDTH // 32) if values.dtype == types.float32 else (ir.DoubleType(), _WIDTH // 64)
    word, vector, mask = ir.IntType(64), ir.VectorType(number, lanes), ir.VectorType(ir.IntType(1), lanes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        matrix, index, numbers = (
            context.make_array(signature.args[place])(context, builder, arguments[place]) for place in (0, 1, 3)
        )
        words, rows = builder.extract_value(matrix.shape, 1), []
        for k in range(_TOGETHER):
            example = builder.load(builder.gep(index.data, [builder.add(arguments[2], word(k))]))
            rows.append(builder.gep(matrix.data, [builder.mul(example, words)]))

        before, loop, after = builder.block, builder.append_basic_block("word"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, sums = builder.phi(word), [builder.phi(vector) for _ in rows]
        added, held = list(sums), [builder.load(builder.gep(row, [at])) for row in rows]
        start = builder.bitcast(builder.gep(numbers.data, [builder.mul(at, word(64))]), vector.as_pointer())
        for part in range(64 // lanes):
            value = builder.load(builder.gep(start, [word(part)]), align=4)
            for k, whole in enumerate(held):
                here = builder.bitcast(builder.trunc(builder.lshr(whole, word(part * lanes)), ir.IntType(lanes)), mask)
                added[k] = builder.select(here, builder.fadd(added[k], value), added[k])
        following = builder.add(at, word(1))
        builder.cbranch(builder.icmp_signed("<", following, words), loop, after)
        for phi, start_value, next_value in [(at, word(0), following)] + [
            (sums[k], ir.Constant(vector, [0.0] * lanes), added[k]) for k in range(_TOGETHER)
        ]:
            phi.add_incoming(start_value, before)
            phi.add_incoming(next_value, loop)

        builder.position_at_end(after)
        totals = []
        for total in added:
            ends = [builder.extract_element(total, ir.IntType(32)(lane)) for lane in range(lanes)]
            while len(ends) > 1:
                ends = [builder.fadd(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True)]
            totals.append(builder.fpext(ends[0], ir.DoubleType()) if lanes == _WIDTH // 32 else ends[0])
        return context.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.float64, _TOGETHER)(bits, examples, first, values), generate


_sums_of_four: Any = intrinsic(_sums)


@jitable
def sum_over_rows(
    bits: NDArray[np.uint64], skip: NDArray[np.bool_], values: NDArray[np.floating], out: NDArray[np.float64]
) -> None:
    """Write, of every example not to be skipped, the sum of the values [64 words] of the rows that hold it.

    There is at least one word.
    """
    todo, count = np.empty(out.shape[0] + 3, np.int64), 0
    for j in range(out.shape[0]):
        todo[count] = j
        count += not skip[j]
    todo[count : count + 3] = todo[0]
    for at in range(0, count, 4):
        a, b, c, d = _sums_of_four(bits, todo, at, values)
        out[todo[at]], out[todo[at + 1]], out[todo[at + 2]], out[todo[at + 3]] = a, b, c, d
