//! The inner loops in plain Rust: the judge of the others, and what machines without kernels of their own run.

use super::{BLOCK, GROUP, Kernel, Panel, UNIT};
use crate::Dtype;
use crate::dtype::{bf16_from_le, f16_from_le, f32_from_le};
use crate::sources::units;

pub(super) fn kernel(dtype: Dtype) -> Kernel {
    match dtype {
        Dtype::F32 => of::<F32>(),
        Dtype::F16 => of::<F16>(),
        Dtype::Bf16 => of::<Bf16>(),
    }
}

fn of<C: Component>() -> Kernel {
    Kernel { name: "portable", scan: scan::<C>, panel: panel::<C> }
}

type Unit = [f32; UNIT];

trait Component {
    const BYTES: usize;

    /// The components in `bytes`, which are a unit's.
    fn unit(bytes: &[u8]) -> Unit;
}

struct F32;
struct F16;
struct Bf16;

impl Component for F32 {
    const BYTES: usize = 4;

    fn unit(bytes: &[u8]) -> Unit {
        std::array::from_fn(|i| f32_from_le([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }
}

impl Component for F16 {
    const BYTES: usize = 2;

    fn unit(bytes: &[u8]) -> Unit {
        std::array::from_fn(|i| f16_from_le([bytes[2 * i], bytes[2 * i + 1]]))
    }
}

impl Component for Bf16 {
    const BYTES: usize = 2;

    fn unit(bytes: &[u8]) -> Unit {
        std::array::from_fn(|i| bf16_from_le([bytes[2 * i], bytes[2 * i + 1]]))
    }
}

fn dot<C: Component>(source: &[f32], row: &[u8]) -> f64 {
    let (source, _) = source.as_chunks::<UNIT>();
    sum_of_blocks(source.iter().zip(row.chunks_exact(UNIT * C::BYTES)).map(|(s, r)| (*s, C::unit(r))))
}

fn squares<C: Component>(row: &[u8]) -> f64 {
    sum_of_blocks(row.chunks_exact(UNIT * C::BYTES).map(|r| (C::unit(r), C::unit(r))))
}

fn scan<C: Component>(panel: Panel<'_>) {
    for (i, row) in panel.rows.chunks_exact(panel.dim * C::BYTES).enumerate() {
        if let Some(out) = panel.dots.get_mut(i) {
            *out += dot::<C>(panel.source, row);
        }
        if let Some(out) = panel.squares.get_mut(i) {
            *out += squares::<C>(row);
        }
    }
}

fn panel<C: Component>(panel: Panel<'_>) {
    let Panel { packed, dim, rows, dots, squares: squares_out, .. } = panel;
    if units(dim) == 0 {
        return;
    }
    let groups = packed.len() / (GROUP * (dim / UNIT));
    for (i, row) in rows.chunks_exact(dim * C::BYTES).enumerate() {
        for (group, packed) in packed.chunks_exact(GROUP * (dim / UNIT)).enumerate() {
            for source in 0..GROUP {
                let lines = packed.iter().skip(source).step_by(GROUP);
                let pairs = lines.zip(row.chunks_exact(UNIT * C::BYTES)).map(|(s, r)| (s.0, C::unit(r)));
                dots[(i * groups + group) * GROUP + source] += sum_of_blocks(pairs);
            }
        }
        if let Some(out) = squares_out.get_mut(i) {
            *out += squares::<C>(row);
        }
    }
}

#[inline]
fn sum_of_blocks(mut pairs: impl Iterator<Item = (Unit, Unit)>) -> f64 {
    let mut total = 0.0;
    loop {
        let mut lanes = [0.0f32; UNIT];
        let mut taken = 0;
        for (a, b) in pairs.by_ref().take(BLOCK / UNIT) {
            for lane in 0..UNIT {
                // No `mul_add`: without the instruction it is a function call.
                lanes[lane] += a[lane] * b[lane];
            }
            taken += 1;
        }
        if taken == 0 {
            return total;
        }
        for lane in 0..UNIT / 4 {
            let quarter = UNIT / 4;
            let sum = (lanes[lane] + lanes[lane + quarter]) + (lanes[lane + 2 * quarter] + lanes[lane + 3 * quarter]);
            total += f64::from(sum);
        }
    }
}
