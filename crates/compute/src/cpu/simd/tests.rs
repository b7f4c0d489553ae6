//! The vector functions against f64, on every instruction set of this machine.

use super::{CpuWeights, Isa, Kernel, Level, Simd, math};

fn levels() -> impl Iterator<Item = (Isa, Level)> {
    Isa::ALL.into_iter().filter_map(|isa| Level::new(isa).map(|level| (isa, level)))
}

#[test]
fn what_no_real_cpu_has_proven_is_not_chosen() {
    for weights in [CpuWeights::Stored, CpuWeights::Int8] {
        let chosen = Isa::detect(weights);
        assert!(chosen.is_available() && chosen.is_proven(weights));
        assert!(Isa::unproven(weights).is_none_or(|isa| isa.is_available() && !isa.is_proven(weights)));
    }
    assert_ne!(Isa::detect(CpuWeights::Int8), Isa::Avx512);
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Silu,
    Gelu,
}

struct Map<'a>(Function, &'a mut [f32]);

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for part in self.1.chunks_mut(S::LANES) {
            let x = s.load_part(part, 0.0);
            let y = match self.0 {
                Function::Exp => math::exp(s, x),
                Function::Silu => math::silu(s, x),
                Function::Gelu => math::gelu(s, x),
            };
            s.store_part(y, part);
        }
    }
}

/// Worst error of `function` over `-limit..limit`, relative to the exact value.
fn worst(level: Level, function: Function, limit: f32, exact: impl Fn(f64) -> f64) -> f64 {
    let x: Vec<f32> = (0..=200_003).map(|i| limit * (i as f32 / 100_000.0 - 1.0)).collect();
    let mut y = x.clone();
    level.run(Map(function, &mut y));
    let error = |(&x, &y): (&f32, &f32)| {
        let want = exact(f64::from(x));
        (f64::from(y) - want).abs() / want.abs().max(1e-35)
    };
    x.iter().zip(&y).map(error).fold(0.0, f64::max)
}

#[test]
fn exp_is_accurate() {
    for (isa, level) in levels() {
        let error = worst(level, Function::Exp, 87.0, f64::exp);
        assert!(error < 2e-7, "{isa:?}: {error:e}");
    }
}

#[test]
fn silu_is_accurate() {
    for (isa, level) in levels() {
        let error = worst(level, Function::Silu, 80.0, |x| x / (1.0 + (-x).exp()));
        assert!(error < 5e-7, "{isa:?}: {error:e}");
    }
}

#[test]
fn gelu_is_accurate() {
    // x Phi(x) by integrating the density of the normal distribution (Simpson) from x to where it vanishes.
    let tail = |x: f64| {
        let (n, h) = (4000, 10.0 / 4000.0);
        let f = |t: f64| (-(x * t + 0.5 * t * t)).exp();
        let sum: f64 = (0..=n)
            .map(|i| {
                f(f64::from(i) * h)
                    * if i == 0 || i == n {
                        1.0
                    } else if i % 2 == 1 {
                        4.0
                    } else {
                        2.0
                    }
            })
            .sum();
        (-0.5 * x * x).exp() * sum * h / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
    };
    let exact = |x: f64| if x < 0.0 { x * tail(-x) } else { x * (1.0 - tail(x)) };
    for (isa, level) in levels() {
        let x: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 200.0).collect();
        let mut y = x.clone();
        level.run(Map(Function::Gelu, &mut y));
        for (&x, &y) in x.iter().zip(&y) {
            let want = exact(f64::from(x));
            // exp(-x^2 / 2) inherits half an ulp of x^2 / 2.
            let allowed = want.abs() * (5e-7 + 6e-8 * f64::from(x * x));
            assert!((f64::from(y) - want).abs() <= allowed, "{isa:?}: gelu({x}) = {y}, not {want}");
        }
    }
}

#[test]
fn extremes_stay_finite_and_nan_stays() {
    let x = [0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38, f32::NAN];
    for (isa, level) in levels() {
        for function in [Function::Exp, Function::Silu, Function::Gelu] {
            let mut y = x;
            level.run(Map(function, &mut y));
            assert!(y[..8].iter().all(|y| y.is_finite()), "{isa:?}: {y:?}");
            assert!(y[8].is_nan(), "{isa:?}: NaN was swallowed");
        }
        let mut y = x;
        level.run(Map(Function::Exp, &mut y));
        assert_eq!((y[0], y[5]), (1.0, 0.0), "{isa:?}");
    }
}

struct Reduce<'a>(&'a [f32]);

impl Kernel for Reduce<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let x = s.load(self.0);
        (s.sum(x), s.max_lane(x))
    }
}

struct Pairs<'a>(&'a [u32], &'a mut [f32]);

impl Kernel for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [low, high] = s.load_pairs(self.0);
        s.store(low, self.1);
        s.store(high, &mut self.1[S::LANES..]);
    }
}

struct Parts<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);

impl Kernel for Parts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = s.load_part(self.0, 9.0);
        s.store_part(x, self.1);
        s.store(x, self.2);
    }
}

#[test]
fn parts_touch_no_more_than_their_floats() {
    for (isa, level) in levels() {
        for length in 0..=level.lanes() {
            let x = vec![1.0; length];
            let (mut part, mut whole) = (vec![0.0; 32], vec![0.0; level.lanes()]);
            level.run(Parts(&x, &mut part[..length], &mut whole));
            assert!(part.iter().enumerate().all(|(i, &x)| x == if i < length { 1.0 } else { 0.0 }), "{isa:?}");
            assert!(whole.iter().enumerate().all(|(i, &x)| x == if i < length { 1.0 } else { 9.0 }), "{isa:?}");
        }
    }
}

#[test]
fn lanes_go_where_they_belong() {
    for (isa, level) in levels() {
        let lanes = level.lanes();
        let x: Vec<f32> = (0..lanes).map(|i| (i * 7 % lanes) as f32 - 3.0).collect();
        assert_eq!(level.run(Reduce(&x)), (x.iter().sum(), lanes as f32 - 4.0), "{isa:?}");

        let half = |i: usize| (i as f32).to_bits() >> 16;
        let pairs: Vec<u32> = (0..lanes).map(|i| half(i) | half(i + lanes) << 16).collect();
        let mut wide = vec![0.0; 2 * lanes];
        level.run(Pairs(&pairs, &mut wide));
        assert!(wide.iter().enumerate().all(|(i, &x)| x == i as f32), "{isa:?}: {wide:?}");
    }
}

struct Transpose<'a>(&'a [f32], usize, &'a mut [f32], usize);

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.transpose(self.0, self.1, self.2, self.3);
    }
}

#[test]
fn transposes_a_square_between_strides() {
    for (isa, level) in levels() {
        let (lanes, stride, to_stride) = (level.lanes(), level.lanes() + 3, 2 * level.lanes());
        let from: Vec<f32> = (0..lanes * stride).map(|i| i as f32).collect();
        let mut to = vec![-1.0; lanes * to_stride];
        level.run(Transpose(&from, stride, &mut to, to_stride));
        for (at, x) in to.iter().enumerate() {
            let (row, column) = (at / to_stride, at % to_stride);
            let want = if column < lanes { (column * stride + row) as f32 } else { -1.0 };
            assert_eq!(*x, want, "{isa:?} {row} {column}");
        }
    }
}
