"""Compiled kernels: exact sums X'Y of numbers over 0/1 rows, from tables of sums ("four Russians").

30 rows are a word. For each 6 of them a table holds the sums of all 64 subsets, and an example adds the entry that its
bits name: 6 rows for one addition of 16 int32 lanes. Tables lie in the L1 cache, the sums of a strip of examples in L2.

Numbers become integers, multiples of a power of two so large that no sum overflows. What is left of them goes the same
way, or is added number by number where little is left: nothing is rounded until sums are added to float64.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled

_BITS, _TABLES = 6, 5
ROWS = _BITS * _TABLES
"""Rows to a word."""
LANES = 16
"""Targets at a time."""
STRIP = 4096
"""Examples at a time: their sums fit into the L2 cache."""
_HEIGHT = 68
"""Words whose sums int32 holds: with more, more numbers would be left."""
_SPLITS = 3
"""Times that numbers are split: of float64 nothing is left but of numbers 2**-50 as large as others."""
_FEW = 1 / 32
"""Share of numbers with something left up to which these are added one by one."""

_intrinsic: Any = extending.intrinsic
_INT64 = ir.IntType(64)
_INTEGERS, _FLOATS = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.DoubleType(), LANES)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, data: Any, at: Any, kind: Any = _INTEGERS) -> Any:
    found = builder.load(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()))
    found.align = 4
    return found


def _store(builder: Any, vector: Any, data: Any, at: Any) -> None:
    builder.store(vector, builder.bitcast(builder.gep(data, [at]), vector.type.as_pointer())).align = 4


@_intrinsic
def _make_entry(typing_context: Any, tables: Any, to: Any, at: Any, numbers: Any, row: Any) -> Any:
    """tables[to : to + 16] = tables[at : at + 16] + numbers[row : row + 16]"""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, added = (_data(context, builder, signature.args[k], values[k]) for k in (0, 3))
        total = builder.add(_load(builder, data, values[2]), _load(builder, added, values[4]))
        _store(builder, total, data, values[1])
        return context.get_dummy_value()

    return types.void(tables, types.int64, types.int64, numbers, types.int64), generate


@_intrinsic
def _add_entries(typing_context: Any, sums: Any, at: Any, tables: Any, word: Any) -> Any:
    """Add to sums[at : at + 16] the entries of the tables that the bits of a word name."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, entries = (_data(context, builder, signature.args[k], values[k]) for k in (0, 2))
        total = _load(builder, data, values[1])
        for table in range(_TABLES):
            word = builder.lshr(values[3], ir.Constant(values[3].type, table * _BITS))
            subset = builder.zext(builder.and_(word, ir.Constant(word.type, 2**_BITS - 1)), _INT64)
            place = builder.add(subset, ir.Constant(_INT64, table << _BITS))
            total = builder.add(total, _load(builder, entries, builder.mul(place, ir.Constant(_INT64, LANES))))
        _store(builder, total, data, values[1])
        return context.get_dummy_value()

    return types.void(sums, types.int64, tables, types.uint32), generate


@_intrinsic
def _add_totals(typing_context: Any, totals: Any, at: Any, unit: Any, sums: Any) -> Any:
    """totals[at : at + 16] += unit[0 : 16] * sums[at : at + 16], in float64; then these sums are 0 again."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        totals_, unit_, sums_ = (_data(context, builder, signature.args[k], values[k]) for k in (0, 2, 3))
        added = builder.sitofp(_load(builder, sums_, values[1], _INTEGERS), _FLOATS)
        added = builder.fmul(added, _load(builder, unit_, ir.Constant(_INT64, 0), _FLOATS))
        _store(builder, builder.fadd(_load(builder, totals_, values[1], _FLOATS), added), totals_, values[1])
        _store(builder, ir.Constant(_INTEGERS, None), sums_, values[1])
        return context.get_dummy_value()

    return types.void(totals, types.int64, unit, sums), generate


@compiled
def pack_words(packed: NDArray[np.uint8], words: NDArray[np.uint32], word: int) -> None:
    """Make one word of words [rows / 30, 8 bytes] from masks [rows, bytes], 8 examples to a byte."""
    found = words[word]
    found[:] = 0
    for place in range(min(ROWS, len(packed) - ROWS * word)):
        row, shift = packed[ROWS * word + place], np.uint32(place)
        for j in range(len(row)):
            byte = np.uint32(row[j])
            for k in range(8):
                found[8 * j + k] |= np.uint32(byte >> np.uint32(7 - k) & np.uint32(1)) << shift


@compiled
def split(numbers: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
    """Split finite numbers [rows, 16] into integers [splits, rows, 16] and their units [splits, heights, 16]; returns
    these, and targets and rows of the numbers of which something is left, which stays in `numbers`.

    rows: a multiple of 30.
    """
    rows, height = len(numbers), ROWS * _HEIGHT
    integers = np.empty((_SPLITS, rows, LANES), np.int32)
    unit = np.empty((_SPLITS, (rows + height - 1) // height, LANES))
    splits, left = 0, numbers.size
    while splits < _SPLITS and left > _FEW * numbers.size:
        left = 0
        for start in range(0, rows, height):
            piece, one = numbers[start : start + height], unit[splits, start // height]
            sizes = np.zeros(LANES)
            for row in range(len(piece)):
                for target in range(LANES):
                    sizes[target] += abs(piece[row, target])
            for target in range(LANES):
                _, exponent = math.frexp(1.00001 * sizes[target])  # rounding adds at most half a unit a row
                one[target] = math.ldexp(1.0, max(exponent - 31, -1000))
                sizes[target] = 1 / one[target]
            for row in range(len(piece)):
                for target in range(LANES):
                    whole = np.rint(piece[row, target] * sizes[target])
                    rest = piece[row, target] - whole * one[target]
                    integers[splits, start + row, target] = np.int32(whole)
                    piece[row, target] = rest
                    left += rest != 0
        splits += 1
    targets, places = np.nonzero(numbers.T)
    return integers[:splits], unit[:splits], targets, places


@compiled
def add_products(
    words: NDArray[np.uint32],
    numbers: NDArray[np.float64],
    integers: NDArray[np.int32],
    unit: NDArray[np.float64],
    targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    start: int,
    table: NDArray[np.float64],
) -> None:
    """Add the products of masks with what `split` gave to table [targets, N + 2], of STRIP examples from `start` on."""
    strip = min(STRIP, table.shape[1] - 2 - start)
    sums, tables = _aligned(strip * LANES), _aligned(_TABLES * LANES << _BITS)
    sums[:], tables[:] = 0, 0
    totals = np.zeros(strip * LANES)
    for number in range(len(integers)):
        flat = integers[number].reshape(-1)
        for height in range(unit.shape[1]):
            for word in range(_HEIGHT * height, min(_HEIGHT * (height + 1), len(words))):
                for row in range(ROWS):
                    to, added = LANES << row % _BITS, LANES * (word * ROWS + row)
                    for entry in range(row // _BITS * LANES << _BITS, (row // _BITS * LANES << _BITS) + to, LANES):
                        _make_entry(tables, entry + to, entry, flat, added)
                bits = words[word, start : start + strip]
                for j in range(strip):
                    _add_entries(sums, j * LANES, tables, bits[j])
            for j in range(0, strip * LANES, LANES):
                _add_totals(totals, j, unit[number, height], sums)

    for part in range(0, strip, 64):
        for target in range(len(table)):
            found = table[target, start + part : start + min(part + 64, strip)]
            piece = totals[LANES * part + target :: LANES]
            for j in range(len(found)):
                found[j] += piece[j]
    for k in range(len(targets)):
        target, row = targets[k], rows[k]
        bits, flag = words[row // ROWS, start : start + strip], np.uint32(1 << row % ROWS)
        number, found = numbers[row, target], table[target, start : start + strip]
        for j in range(strip):
            found[j] += number if bits[j] & flag else 0.0


@compiled
def _aligned(size: int) -> NDArray[np.int32]:
    """An array that begins at a multiple of 64 bytes, so that no vector lies across two cache lines."""
    values = np.empty(size + LANES, np.int32)
    return values[-values.ctypes.data % 64 // 4 :][:size]
