//! Matrix products, as a plain loop.

use crate::memory::Memory;
use nexus_compute::cuda::{Format, Product};
use nexus_compute::{DType, TensorView};

pub(crate) fn multiply(memory: &mut Memory, product: &Product) {
    let Product { rows, in_columns, out_columns, format, accumulate, .. } = *product;
    assert!(in_columns.is_multiple_of(8) && out_columns.is_multiple_of(8), "{product:?}");
    let floats = |memory: &Memory, address, count: usize, format: Format| {
        let dtype = if format == Format::Bf16 { DType::Bf16 } else { DType::F32 };
        let shape = [count];
        let bytes = memory.slice(address, count * format.size_bytes());
        TensorView::new(dtype, &shape, bytes).expect("the bytes were measured for it").to_f32()
    };
    let x = floats(memory, product.x, rows * in_columns, Format::Bf16);
    let weight = floats(memory, product.weight, in_columns * out_columns, Format::Bf16);
    let mut y =
        if accumulate { floats(memory, product.y, rows * out_columns, format) } else { vec![0.0; rows * out_columns] };
    for (x, y) in x.chunks_exact(in_columns).zip(y.chunks_exact_mut(out_columns)) {
        for (weight, y) in weight.chunks_exact(in_columns).zip(y) {
            // Several sums at once, as a device has them, and as a compiler can make vectors of.
            let mut sums = [0.0f32; 8];
            for (x, weight) in x.as_chunks::<8>().0.iter().zip(weight.as_chunks::<8>().0) {
                for i in 0..8 {
                    sums[i] += x[i] * weight[i];
                }
            }
            *y += sums.iter().sum::<f32>();
        }
    }
    let to = memory.slice_mut(product.y, y.len() * format.size_bytes());
    match format {
        Format::F32 => to.as_chunks_mut::<4>().0.iter_mut().zip(&y).for_each(|(to, y)| *to = y.to_le_bytes()),
        Format::Bf16 => {
            to.as_chunks_mut::<2>()
                .0
                .iter_mut()
                .zip(&y)
                .for_each(|(to, y)| *to = half::bf16::from_f32(*y).to_le_bytes());
        }
    }
}
