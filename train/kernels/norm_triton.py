"""Triton: batch norm, ReLU and a residual, on activations that lie as [pixels, channels].

A launch over `splits` chunks of pixels leaves one partial result a chunk and channel, and a second one combines them in
a fixed order: no atomics, so the same bytes every time. Whatever is added up is float32. In evaluation, `normalise` is
all there is to do: it then takes the running mean and variance, and EPS.

Second passes start with the pixels that the first pass read last, which are the ones still in the GPU's cache.
"""

import triton
import triton.language as tl

BEFORE: tl.constexpr = tl.constexpr(1)
"""A residual that is added before the ReLU."""
AFTER: tl.constexpr = tl.constexpr(2)
"""A residual that is added after it."""

STAGES: tl.constexpr = tl.constexpr(3)
"""Tiles of a reducing pass that are asked for ahead of their use, by way of shared memory."""


@triton.jit
def affine(value, mean, scale, bias):
    return (value - mean[None, :]) * scale[None, :] + bias[None, :]


@triton.jit
def rectify(value):
    """ReLU that keeps a NaN, so that a run that has diverged is seen."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def per_channel(mean, rstd, weight, bias, channel, there, EPS: tl.constexpr = None):
    """Mean, rstd, weight * rstd and bias of some channels. With EPS, rstd points to variances."""
    m = tl.load(mean + channel, mask=there, other=0.0)
    r = tl.load(rstd + channel, mask=there, other=0.0)
    if EPS is not None:
        r = 1.0 / tl.sqrt_rn(r + EPS)
    w = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    return m, r, w * r, b


@triton.jit(do_not_specialize=["pixels", "chunk"])
def statistics(x, means, squares, pixels, chunk, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean, less x's first pixel, and sum of squared deviations [splits, C] of each chunk of pixels.

    Welford's update in every lane, on differences to the first pixel, then the lanes are combined (Chan et al. 1979):
    neither a mean far from 0 nor an outlier costs digits.
    """
    split = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    first = split * chunk
    last = tl.minimum(first + chunk, pixels)
    lane = tl.arange(0, BLOCK_P)
    base = tl.load(x + channel, mask=there, other=0.0).to(tl.float32)
    mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    seen = 0.0
    for start in tl.range(first, last, BLOCK_P, num_stages=STAGES):
        pixel = start + lane
        inside = (pixel < last)[:, None] & there[None, :]
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        value -= base[None, :]
        seen += 1.0
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / seen)
        square += delta * (value - mean)
    count = ((last - first - lane + BLOCK_P - 1) // BLOCK_P).to(tl.float32)[:, None]
    centre = tl.sum(count * mean, axis=0) / (last - first).to(tl.float32)
    away = mean - centre[None, :]
    tl.store(means + split * C + channel, centre, mask=there)
    tl.store(squares + split * C + channel, tl.sum(square + count * away * away, axis=0), mask=there)


@triton.jit(do_not_specialize=["pixels", "chunk", "splits"])
def finalise(
    x,
    means,
    squares,
    mean,
    rstd,
    running_mean,
    running_var,
    tracked,
    pixels,
    chunk,
    splits,
    eps,
    momentum,
    C: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and 1/sqrt(variance + eps) of each channel from the chunks' statistics; running statistics as torch's."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    split = tl.arange(0, SPLITS)
    inside = (split < splits)[:, None] & there[None, :]
    count = tl.where(split < splits, tl.minimum(pixels - split * chunk, chunk), 0).to(tl.float32)[:, None]
    at = split[:, None] * C + channel[None, :]
    part = tl.load(means + at, mask=inside, other=0.0)
    square = tl.load(squares + at, mask=inside, other=0.0)
    total = pixels.to(tl.float32)
    centre = tl.sum(count * part, axis=0) / total
    away = part - centre[None, :]
    sum_of_squares = tl.sum(square + count * away * away, axis=0)
    variance = sum_of_squares / total
    m = tl.load(x + channel, mask=there, other=0.0).to(tl.float32) + centre
    tl.store(mean + channel, m, mask=there)
    tl.store(rstd + channel, 1.0 / tl.sqrt_rn(variance + eps), mask=there)
    old_mean = tl.load(running_mean + channel, mask=there, other=0.0)
    old_var = tl.load(running_var + channel, mask=there, other=0.0)
    tl.store(running_mean + channel, old_mean + momentum * (m - old_mean), mask=there)
    tl.store(running_var + channel, old_var + momentum * (sum_of_squares / (total - 1.0) - old_var), mask=there)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit(do_not_specialize=["pixels"])
def normalise(
    x,
    residual,
    y,
    mean,
    rstd,
    weight,
    bias,
    pixels,
    C: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = relu(bn(x)), relu(bn(x) + residual) or relu(bn(x)) + residual."""
    pixel = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    inside = (pixel < pixels)[:, None] & there[None, :]
    at = pixel[:, None] * C + channel[None, :]
    m, _, scale, b = per_channel(mean, rstd, weight, bias, channel, there, EPS)
    value = affine(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), m, scale, b)
    if RESIDUAL == BEFORE:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = rectify(value)
    if RESIDUAL == AFTER:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def opened(x, y, dy, at, inside, m, scale, b, RELU: tl.constexpr, RESIDUAL: tl.constexpr):
    """Numbers of x and of dy, the latter 0 where the ReLU was shut."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        if RESIDUAL == BEFORE:
            result = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        else:
            result = affine(value, m, scale, b).to(x.dtype.element_ty).to(tl.float32)
        g = tl.where(result > 0, g, 0.0)
    return value, g


@triton.jit
def slope(value, g, m, r, scale, sums, products, pixels, channel, there):
    """The gradient of x: weight * rstd * (g - mean(g) - z * mean(g * z)), from the sums of g and g * z [C]."""
    mean_g = tl.load(sums + channel, mask=there, other=0.0) / pixels
    mean_gz = tl.load(products + channel, mask=there, other=0.0) / pixels
    z = (value - m[None, :]) * r[None, :]
    return scale[None, :] * (g - mean_g[None, :] - z * mean_gz[None, :])


@triton.jit(do_not_specialize=["pixels", "chunk"])
def backward(
    x,
    y,
    dy,
    dx,
    dresidual,
    mean,
    rstd,
    weight,
    bias,
    sums,
    products,
    pixels,
    chunk,
    C: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    APPLY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With g = dy where the ReLU was open and z = (x - mean) * rstd, in two launches:

    the first writes each chunk's sums of g and of g * z to `sums` and `products` [splits, C]; the second (APPLY) reads
    their totals there [C] and writes dx, for BLOCK_P pixels a program, and g as the gradient of a residual that was
    added before the ReLU.
    """
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    m, r, scale, b = per_channel(mean, rstd, weight, bias, channel, there)
    if APPLY:
        pixel = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (pixel < pixels)[:, None] & there[None, :]
        at = pixel[:, None] * C + channel[None, :]
        value, g = opened(x, y, dy, at, inside, m, scale, b, RELU, RESIDUAL)
        if RELU and RESIDUAL == BEFORE:
            tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=inside)
        gradient = slope(value, g, m, r, scale, sums, products, pixels, channel, there)
        tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
    else:
        split = tl.program_id(0)
        last = tl.minimum(split * chunk + chunk, pixels)
        sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        sum_gz = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for start in tl.range(split * chunk, last, BLOCK_P, num_stages=STAGES):
            pixel = start + tl.arange(0, BLOCK_P)
            inside = (pixel < last)[:, None] & there[None, :]
            at = pixel[:, None] * C + channel[None, :]
            value, g = opened(x, y, dy, at, inside, m, scale, b, RELU, RESIDUAL)
            sum_g += g
            sum_gz += g * (value - m[None, :]) * r[None, :]
        tl.store(sums + split * C + channel, tl.sum(sum_g, axis=0), mask=there)
        tl.store(products + split * C + channel, tl.sum(sum_gz, axis=0), mask=there)


@triton.jit(do_not_specialize=["splits"])
def total(sums, products, dbias, dweight, splits, C: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The chunks' sums [splits, C] added up."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    split = tl.arange(0, SPLITS)
    inside = (split < splits)[:, None] & there[None, :]
    at = split[:, None] * C + channel[None, :]
    tl.store(dbias + channel, tl.sum(tl.load(sums + at, mask=inside, other=0.0), axis=0), mask=there)
    tl.store(dweight + channel, tl.sum(tl.load(products + at, mask=inside, other=0.0), axis=0), mask=there)
