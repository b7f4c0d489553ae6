//! Transcendental functions on vectors, each accurate to a few units in the last place of f32.
//!
//! The polynomials are minimax fits of relative error, made for these intervals in high precision and rounded to f32.
//! NaN comes out where NaN goes in.

use super::Simd;

/// The exponential, relative error below 2e-7: 0 where the result would be subnormal, no larger than `e^88.37`.
///
/// `e^x = 2^n e^r` with `n = round(x / ln 2)`, `|r| <= ln(2) / 2`; `ln 2` is taken away in two pieces, the first of
/// which has so few bits that its product with `n` is exact (Cody and Waite 1980).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::Vector) -> S::Vector {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.37;
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // (e^r - 1 - r) / r^2, the resulting e^r within 3e-9.
    const Q: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_5];

    // The variable comes second, so that NaN stays.
    let clamped = s.min(s.splat(HIGHEST), s.max(s.splat(LOWEST), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), clamped);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let q = polynomial(s, &Q, r);
    let e = s.add(s.mul_add(s.mul(r, r), q, r), s.splat(1.0));
    s.select_less(x, s.splat(LOWEST), s.splat(0.0), s.scale_by_power_of_two(e, n))
}

/// `x * sigmoid(x)`, where the exponential is only taken of what is not positive and so can not overflow:
/// `x / (1 + e^-x)` for positive `x`, `x e^x / (1 + e^x)` for the others.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::Vector) -> S::Vector {
    let zero = s.splat(0.0);
    let e = exp(s, s.min(s.sub(zero, x), x));
    s.div(s.select_less(x, zero, s.mul(x, e), x), s.add(e, s.splat(1.0)))
}

/// `0.5 x (1 + erf(x / sqrt 2)) = x Phi(x)`.
///
/// `Phi(-|x|) = e^(-x^2 / 2) t P(t) / 2` with `t = 1 / (1 + 0.4 |x| / sqrt 2)`: the form of Hastings (1955; Abramowitz
/// and Stegun 7.1.26), fitted to relative error, so that the negative tail keeps its digits.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::Vector) -> S::Vector {
    const SLOPE: f32 = 0.4 * std::f32::consts::FRAC_1_SQRT_2;
    // erfc(z) e^(z^2) / t over t = 1 / (1 + 0.4 z), within 2e-7.
    const P: [f32; 9] = [
        0.225_675_87,
        0.225_669_53,
        0.207_843_83,
        0.168_534,
        0.141_460_75,
        -0.005_667_743,
        0.169_155_08,
        -0.182_943_84,
        0.050_272_666,
    ];
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let magnitude = s.max(s.sub(zero, x), x);
    let t = s.div(one, s.mul_add(magnitude, s.splat(SLOPE), one));
    let gauss = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let tail = s.mul(s.mul(s.mul(gauss, s.splat(0.5)), t), polynomial(s, &P, t));
    s.mul(x, s.select_less(x, zero, tail, s.sub(one, tail)))
}

/// `c[0] + c[1] x + c[2] x^2 + ...` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, c: &[f32; N], x: S::Vector) -> S::Vector {
    let mut sum = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.mul_add(sum, x, s.splat(c[i]));
    }
    sum
}
