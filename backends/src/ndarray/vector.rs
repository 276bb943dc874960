//! Loops over slices that the compiler vectorizes, compiled for the widest vectors of this
//! processor.

/// Number of accumulators: the lanes of the widest vectors, and a multiple of those of every other.
pub(super) const LANES: usize = 16;

/// Runs `f` compiled for the widest vectors of this processor. `f` and everything it calls must be
/// `#[inline(always)]`: functions that are not inlined are compiled for the narrowest vectors.
#[inline(always)]
pub(super) fn vectorized<T>(f: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(f)
}

/// Returns `e^x` with an error of about two units in the last place for `x` up to 88; 0 or nearly
/// so below -87, and NaN for NaN.
///
/// It reduces the range by `n ln 2` and evaluates a polynomial (Cephes, `expf`), without branches,
/// so that it vectorizes.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let y = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_add(127) << 23;
    y * f32::from_bits(exponent)
}

/// Returns the sum of `f(a, b)` over two slices of equal length.
#[inline(always)]
pub(super) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| f(*a, *b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// Returns the sum of `f(x)`.
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum2(x, x, |x, _| f(x))
}

/// Sets `(a, b) = f(a, b, c, d)` for the elements of four slices of equal length.
///
/// It works on vectors in local variables: if `a` and `b` are parts of one row, the compiler cannot
/// know that they do not overlap, and would not vectorize.
#[inline(always)]
pub(super) fn update_pairs(
    [a, b]: [&mut [f32]; 2],
    [c, d]: [&[f32]; 2],
    f: impl Fn(f32, f32, f32, f32) -> (f32, f32),
) {
    let (a, a_rest) = a.as_chunks_mut::<LANES>();
    let (b, b_rest) = b.as_chunks_mut::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    let (d, d_rest) = d.as_chunks::<LANES>();
    for ((a, b), (c, d)) in a.iter_mut().zip(b).zip(c.iter().zip(d)) {
        let (a_here, b_here, c, d) = (*a, *b, *c, *d);
        let (mut a_new, mut b_new) = ([0f32; LANES], [0f32; LANES]);
        for i in 0..LANES {
            (a_new[i], b_new[i]) = f(a_here[i], b_here[i], c[i], d[i]);
        }
        (*a, *b) = (a_new, b_new);
    }
    let rest = a_rest.iter_mut().zip(b_rest);
    for ((a, b), (c, d)) in rest.zip(c_rest.iter().zip(d_rest)) {
        (*a, *b) = f(*a, *b, *c, *d);
    }
}

/// Replaces each value by `f(value)`.
#[inline(always)]
pub(super) fn update(x: &mut [f32], f: impl Fn(f32) -> f32) {
    let (blocks, rest) = x.as_chunks_mut::<LANES>();
    for block in blocks {
        for value in block {
            *value = f(*value);
        }
    }
    for value in rest {
        *value = f(*value);
    }
}

/// Sets `(a, b) = f(a, b)` for the elements of two slices of equal length.
#[inline(always)]
pub(super) fn update2(a: &mut [f32], b: &mut [f32], f: impl Fn(f32, f32) -> (f32, f32)) {
    let (a, a_rest) = a.as_chunks_mut::<LANES>();
    let (b, b_rest) = b.as_chunks_mut::<LANES>();
    for (a, b) in a.iter_mut().zip(b) {
        let (mut a_new, mut b_new) = ([0f32; LANES], [0f32; LANES]);
        for i in 0..LANES {
            (a_new[i], b_new[i]) = f(a[i], b[i]);
        }
        (*a, *b) = (a_new, b_new);
    }
    for (a, b) in a_rest.iter_mut().zip(b_rest) {
        (*a, *b) = f(*a, *b);
    }
}

/// Returns the sum of all values: first lane by lane, then the remainder in order.
#[inline(always)]
pub(super) fn total(x: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += block[lane];
        }
    }
    rest.iter().fold(sums.iter().sum(), |total, value| total + value)
}

/// Returns the largest value, ignoring NaN; negative infinity for an empty slice.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            largest[lane] = if block[lane] > largest[lane] { block[lane] } else { largest[lane] };
        }
    }
    let all = largest.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |max, x| max.max(*x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right() {
        for at in -8700..8800 {
            let x = at as f32 / 100.0;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(relative < 3e-7, "exp({x}) is off by {relative:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_cover_every_element() {
        for count in [0, 1, 15, 16, 17, 50] {
            let x: Vec<f32> = (0..count).map(|at| (at * 7 % 11) as f32 - 20.0).collect();
            assert_eq!(sum(&x, |x| 2.0 * x), 2.0 * x.iter().sum::<f32>());
            let largest = x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
            assert_eq!(max(&x), largest);
            let mut halved = x.clone();
            update(&mut halved, |x| x / 2.0);
            assert_eq!(total(&halved), x.iter().sum::<f32>() / 2.0);
            let (mut a, mut b) = (x.clone(), halved.clone());
            update_pairs([&mut a, &mut b], [&x, &halved], |a, b, c, d| (b + c, a * d));
            for (at, x) in x.iter().enumerate() {
                assert_eq!((a[at], b[at]), (1.5 * x, 0.5 * x * x));
            }
            update(&mut b, |b| b - 1.0);
            update2(&mut a, &mut b, |a, b| (a - b, 2.0 * a));
            for (at, x) in x.iter().enumerate() {
                assert_eq!((a[at], b[at]), (1.5 * x - (0.5 * x * x - 1.0), 3.0 * x));
            }
        }
    }
}
