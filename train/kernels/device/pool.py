"""Triton: the end of a convolution block that is pooled, so that the activation itself is never written.

As in device.norm, with the pooled activation in place of the activation. Ties are those of the activation in its own
precision, and go as in torch: a 2x2 maximum's gradient to the first of them, a global maximum's to all in equal parts.
"""

import triton
import triton.language as tl

from datamodels.train.kernels.device.norm import STAGES, affine, per_channel, rectify, slope


@triton.jit
def pixel_of(window, corner: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The pixel at a corner (0-3) of each 2x2 window, and whether the image has it. Odd sides have half windows."""
    windows_across = (W + 1) // 2
    windows_down = (H + 1) // 2
    column = window % windows_across * 2 + corner % 2
    row = window // windows_across % windows_down * 2 + corner // 2
    image = window // (windows_across * windows_down)
    return (image * H + row) * W + column, (row < H) & (column < W)


@triton.jit
def pooled_pixel(window, H: tl.constexpr, W: tl.constexpr):
    """The output's pixel of each window, and whether the window lies wholly in the image."""
    windows_across = (W + 1) // 2
    windows_down = (H + 1) // 2
    column = window % windows_across
    row = window // windows_across % windows_down
    image = window // (windows_across * windows_down)
    return (image * (H // 2) + row) * (W // 2) + column, (row < H // 2) & (column < W // 2)


@triton.jit
def greater(a, b):
    """Whether a replaces b as the maximum: a NaN does, as in torch."""
    return (a > b) | (a != a)


@triton.jit(do_not_specialize=["windows"])
def normalise_pool(
    x,
    y,
    mean,
    rstd,
    weight,
    bias,
    windows,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = max_pool2d(relu(bn(x)), 2); windows counts the half ones too."""
    window = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    m, _, scale, b = per_channel(mean, rstd, weight, bias, channel, there, EPS)
    out, whole = pooled_pixel(window, H, W)
    inside = (whole & (window < windows))[:, None] & there[None, :]
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), tl.float32)
    for corner in tl.static_range(4):
        pixel, _ = pixel_of(window, corner, H, W)
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        value = affine(value, m, scale, b)
        best = tl.where(greater(value, best), value, best)
    if RELU:
        best = rectify(best)
    tl.store(y + out[:, None] * C + channel[None, :], best.to(y.dtype.element_ty), mask=inside)


@triton.jit
def first_maximum(
    x,
    dy,
    window,
    windows,
    channel,
    there,
    m,
    scale,
    b,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The corner of each window that has its maximum, the number of x there, and dy, which is 0 where the ReLU shut."""
    out, whole = pooled_pixel(window, H, W)
    inside = (whole & (window < windows))[:, None] & there[None, :]
    g = tl.load(dy + out[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), tl.float32)
    winner = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    chosen = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for corner in tl.static_range(4):
        pixel, _ = pixel_of(window, corner, H, W)
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        activation = affine(value, m, scale, b).to(x.dtype.element_ty).to(tl.float32)
        better = greater(activation, best)
        best = tl.where(better, activation, best)
        winner = tl.where(better, corner, winner)
        chosen = tl.where(better, value, chosen)
    if RELU:
        g = tl.where(best > 0, g, 0.0)
    return winner, chosen, g


@triton.jit(do_not_specialize=["windows", "chunk", "pixels"])
def backward_pool(
    x,
    dy,
    dx,
    mean,
    rstd,
    weight,
    bias,
    sums,
    products,
    windows,
    chunk,
    pixels,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    APPLY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """norm.backward, where g is dy at the first maximum of each window and 0 elsewhere."""
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    m, r, scale, b = per_channel(mean, rstd, weight, bias, channel, there)
    if APPLY:
        window = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
        winner, _, g = first_maximum(
            x, dy, window, windows, channel, there, m, scale, b, H, W, C, RELU, BLOCK_P, BLOCK_C
        )
        for corner in tl.static_range(4):
            pixel, exists = pixel_of(window, corner, H, W)
            at = pixel[:, None] * C + channel[None, :]
            inside = (exists & (window < windows))[:, None] & there[None, :]
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            own = tl.where(winner == corner, g, 0.0)
            gradient = slope(value, own, m, r, scale, sums, products, pixels, channel, there)
            tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
    else:
        split = tl.program_id(0)
        last = tl.minimum(split * chunk + chunk, windows)
        sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        sum_gz = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for start in tl.range(split * chunk, last, BLOCK_P, num_stages=STAGES):
            window = start + tl.arange(0, BLOCK_P)
            _, chosen, g = first_maximum(
                x, dy, window, last, channel, there, m, scale, b, H, W, C, RELU, BLOCK_P, BLOCK_C
            )
            sum_g += g
            sum_gz += g * (chosen - m[None, :]) * r[None, :]
        tl.store(sums + split * C + channel, tl.sum(sum_g, axis=0), mask=there)
        tl.store(products + split * C + channel, tl.sum(sum_gz, axis=0), mask=there)


@triton.jit
def normalise_amax(
    x,
    y,
    mean,
    rstd,
    weight,
    bias,
    HW: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y [B, C] = relu(bn(x)).amax((2, 3)), a program an image."""
    image = tl.num_programs(0) - 1 - tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    lane = tl.arange(0, BLOCK_P)
    inside = (lane < HW)[:, None] & there[None, :]
    m, _, scale, b = per_channel(mean, rstd, weight, bias, channel, there, EPS)
    at = (image * HW + lane)[:, None] * C + channel[None, :]
    value = affine(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), m, scale, b)
    best = tl.max(tl.where(inside, value, float("-inf")), axis=0)
    # tl.max drops NaNs; a channel has one exactly where its statistics or parameters are not finite, and then has only
    # such. (m - m) * scale + b is such a value, too.
    probe = (m - m) * scale + b
    best = tl.where(probe == probe, best, probe)
    if RELU:
        best = rectify(best)
    tl.store(y + image * C + channel, best.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["images", "chunk"])
def backward_amax(
    x,
    dy,
    dx,
    mean,
    rstd,
    weight,
    bias,
    sums,
    products,
    images,
    chunk,
    HW: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    APPLY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """norm.backward, where g is dy [B, C] in equal parts at the maxima of each image and 0 elsewhere."""
    split = tl.num_programs(0) - 1 - tl.program_id(0) if APPLY else tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    lane = tl.arange(0, BLOCK_P)
    inside = (lane < HW)[:, None] & there[None, :]
    m, r, scale, b = per_channel(mean, rstd, weight, bias, channel, there)
    if APPLY:
        pixels = images.to(tl.float32) * HW
        mean_g = tl.load(sums + channel, mask=there, other=0.0) / pixels
        mean_gz = tl.load(products + channel, mask=there, other=0.0) / pixels
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gz = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for image in range(split * chunk, tl.minimum(split * chunk + chunk, images)):
        at = (image * HW + lane)[:, None] * C + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        activation = affine(value, m, scale, b).to(x.dtype.element_ty).to(tl.float32)
        best = tl.max(tl.where(inside, activation, float("-inf")), axis=0)
        tie = inside & (activation == best[None, :])
        share = tl.load(dy + image * C + channel, mask=there, other=0.0).to(tl.float32)
        share = share / tl.maximum(tl.sum(tie.to(tl.float32), axis=0), 1.0)
        if RELU:
            share = tl.where(best > 0, share, 0.0)
        g = tl.where(tie, share[None, :], 0.0)
        z = (value - m[None, :]) * r[None, :]
        if APPLY:
            slope = scale[None, :] * (g - mean_g[None, :] - z * mean_gz[None, :])
            tl.store(dx + at, slope.to(dx.dtype.element_ty), mask=inside)
        else:
            sum_g += g
            sum_gz += g * z
    if not APPLY:
        tl.store(sums + split * C + channel, tl.sum(sum_g, axis=0), mask=there)
        tl.store(products + split * C + channel, tl.sum(sum_gz, axis=0), mask=there)
