//! From numbers to ggml's blocks.

use half::f16;

/// Nearest whole number, halves away from zero, of a number that fits an i32.
#[inline(always)]
fn round_away(x: f32) -> f32 {
    // The largest number below one half: one half itself would take 0.49999997 to 1.
    (x + 0.499_999_97_f32.copysign(x)).trunc()
}

/// Nearest whole number, halves to even, of a number below 2^22.
#[inline(always)]
fn round_even(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

/// `1 / x`, or 0 for 0.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// A block's factor; NaN if one of its numbers is not finite, so that no such number is lost.
#[inline(always)]
fn factor(d: f32, x: &[f32]) -> [u8; 2] {
    let is_finite = x.iter().all(|x| x.is_finite());
    (if is_finite { f16::from_f32(d) } else { f16::NAN }).to_le_bytes()
}

#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

#[inline(always)]
pub(super) fn q8_0(x: &[f32; 32]) -> [u8; 34] {
    let d = largest_magnitude(x) / 127.0;
    let inverse = inverse(d);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&factor(d, x));
    for (code, x) in block[2..].iter_mut().zip(x) {
        *code = round_away(x * inverse) as i8 as u8;
    }
    block
}

#[inline(always)]
pub(super) fn q4_0(x: &[f32; 32]) -> [u8; 18] {
    // The number of largest magnitude, the first of them, becomes code 0.
    let largest = x.iter().fold(
        0.0_f32,
        |largest, x| if x.abs() > largest.abs() { *x } else { largest },
    );
    let d = largest / -8.0;
    let inverse = inverse(d);
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&factor(d, x));
    for i in 0..16 {
        block[2 + i] = code(x[i]) | code(x[i + 16]) << 4;
    }
    block
}

#[inline(always)]
pub(super) fn q4_k(x: &[f32; 256]) -> [u8; 144] {
    let mut scales = [0.0; 8];
    let mut mins = [0.0; 8];
    for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
        (scales[i], mins[i]) = fit_affine(x);
    }
    let (d, dmin) = (largest_magnitude(&scales) / 63.0, largest_magnitude(&mins) / 63.0);
    let (d_inverse, dmin_inverse) = (inverse(d), inverse(dmin));
    let scale_codes = scales.map(|scale| round_even(scale * d_inverse).min(63.0) as u8);
    let min_codes = mins.map(|min| round_even(min * dmin_inverse).min(63.0) as u8);

    let mut block = [0; 144];
    block[..2].copy_from_slice(&factor(d, x));
    block[2..4].copy_from_slice(&factor(dmin, x));
    for i in 0..4 {
        block[4 + i] = scale_codes[i] | scale_codes[4 + i] >> 4 << 6;
        block[8 + i] = min_codes[i] | min_codes[4 + i] >> 4 << 6;
        block[12 + i] = scale_codes[4 + i] & 15 | (min_codes[4 + i] & 15) << 4;
    }
    // Codes are chosen for the numbers that a reader will compute with.
    let (d, dmin) = (f16::from_f32(d).to_f32(), f16::from_f32(dmin).to_f32());
    for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
        let inverse = inverse(d * f32::from(scale_codes[i]));
        let min = dmin * f32::from(min_codes[i]);
        for (byte, x) in block[16 + i / 2 * 32..][..32].iter_mut().zip(x) {
            *byte |= (round_even((x + min) * inverse).clamp(0.0, 15.0) as u8) << (i % 2 * 4);
        }
    }
    block
}

/// Scale and minimum, neither negative, for which `scale · q - min` with q from 0 to 15 is nearest to `x`: the least
/// weighted squared error among grids somewhat wider and narrower than the numbers' range, each fitted.
#[inline(always)]
fn fit_affine(x: &[f32; 32]) -> (f32, f32) {
    let low = x.iter().fold(0.0_f32, |low, x| x.min(low));
    let high = x.iter().fold(x[0], |high, x| x.max(high));
    if high <= low {
        return (0.0, -low);
    }
    // Large numbers matter more.
    let mean_square = x.iter().map(|x| x * x).sum::<f32>() / 32.0;
    let base = mean_square.sqrt();
    let weights = x.map(|x| base + x.abs());
    let sum_w: f32 = weights.iter().sum();
    let sum_wx: f32 = weights.iter().zip(x).map(|(w, x)| w * x).sum();

    let codes = |inverse: f32, low: f32| x.map(|x| round_even((x - low) * inverse).clamp(0.0, 15.0));
    let error = |codes: &[f32; 32], scale: f32, low: f32| {
        let mut error = 0.0;
        for i in 0..32 {
            let miss = scale * codes[i] + low - x[i];
            error += weights[i] * miss * miss;
        }
        error
    };
    let mut best = ((high - low) / 15.0, low);
    let mut best_error = error(&codes(1.0 / best.0, low), best.0, low);
    for step in 0..=20 {
        let codes = codes((14.0 + 0.1 * step as f32) / (high - low), low);
        let (mut sum_wq, mut sum_wqq, mut sum_wqx) = (0.0, 0.0, 0.0);
        for i in 0..32 {
            let wq = weights[i] * codes[i];
            sum_wq += wq;
            sum_wqq += wq * codes[i];
            sum_wqx += wq * x[i];
        }
        let determinant = sum_w * sum_wqq - sum_wq * sum_wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_wqx - sum_wx * sum_wq) / determinant;
        let mut low = (sum_wqq * sum_wx - sum_wq * sum_wqx) / determinant;
        if low > 0.0 {
            (scale, low) = (sum_wqx / sum_wqq, 0.0);
        }
        let error = error(&codes, scale, low);
        if error < best_error && scale > 0.0 {
            (best, best_error) = ((scale, low), error);
        }
    }
    (best.0, -best.1)
}

#[inline(always)]
pub(super) fn q6_k(x: &[f32; 256]) -> [u8; 210] {
    let mut scales = [0.0_f32; 16];
    for (i, x) in x.as_chunks::<16>().0.iter().enumerate() {
        scales[i] = fit_scale(x);
    }
    // The scale of largest magnitude, whatever its sign, becomes code -128.
    let largest = scales.iter().fold(
        0.0_f32,
        |largest, x| if x.abs() > largest.abs() { *x } else { largest },
    );
    let d = largest / -128.0;
    let d_inverse = inverse(d);
    let scale_codes = scales.map(|scale| round_even(scale * d_inverse).clamp(-128.0, 127.0));
    let stored_d = f16::from_f32(d).to_f32();

    let mut codes = [0_u8; 256];
    for (i, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let inverse = inverse(stored_d * scale_codes[i]);
        for (code, x) in codes[16 * i..].iter_mut().zip(x) {
            *code = (round_even(x * inverse).clamp(-32.0, 31.0) + 32.0) as u8;
        }
    }
    let mut block = [0; 210];
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        for c in 0..64 {
            block[64 * half + c] = codes[c] & 15 | (codes[64 + c] & 15) << 4;
        }
        for c in 0..32 {
            block[128 + 32 * half + c] =
                codes[c] >> 4 | codes[32 + c] >> 4 << 2 | codes[64 + c] >> 4 << 4 | codes[96 + c] >> 4 << 6;
        }
    }
    for (byte, code) in block[192..208].iter_mut().zip(scale_codes) {
        *byte = code as i8 as u8;
    }
    block[208..].copy_from_slice(&factor(d, x));
    block
}

/// The scale, of either sign, for which `scale · q` with q from -32 to 31 is nearest to `x`: the least squared error
/// weighted by `x²`, among grids somewhat wider and narrower than the largest number, each fitted.
#[inline(always)]
fn fit_scale(x: &[f32; 16]) -> f32 {
    let largest = x.iter().fold(
        0.0_f32,
        |largest, x| if x.abs() > largest.abs() { *x } else { largest },
    );
    if largest == 0.0 {
        return 0.0;
    }
    // With `scale = Σ w·x·q / Σ w·q²` the error is a constant less `(Σ w·x·q)² / Σ w·q²`.
    let mut best = (0.0, 0.0);
    for step in -9..=9 {
        let inverse = -(32.0 + 0.1 * step as f32) / largest;
        let (mut sum_wqx, mut sum_wqq) = (0.0, 0.0);
        for x in x {
            let q = round_even(x * inverse).clamp(-32.0, 31.0);
            sum_wqx += x * x * x * q;
            sum_wqq += x * x * q * q;
        }
        if sum_wqq > 0.0 && sum_wqx * sum_wqx > best.1 * sum_wqq {
            best = (sum_wqx / sum_wqq, sum_wqx * sum_wqx / sum_wqq);
        }
    }
    best.0
}
