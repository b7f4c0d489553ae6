//! The number formats that rows may be stored in.
//!
//! Deliberately absent: arithmetic. Formats narrower than `f32` are only ever widened, which rounds nothing.

#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("rows are little-endian bytes, and are read as they lie in memory");

/// How a component is stored: always little-endian, at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`.
    Bf16,
}

impl Dtype {
    /// Bytes in a component.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its name in safetensors files: `F32`, `F16`, `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// The format that safetensors files call `name`, if it is one of these.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.name() == name)
    }

    /// Appends the components in `bytes` to `out`, exactly.
    ///
    /// # Panics
    ///
    /// When `bytes` is not a whole number of components.
    pub fn widen(self, bytes: &[u8], out: &mut Vec<f32>) {
        assert!(bytes.len().is_multiple_of(self.bytes()), "{} bytes of {}", bytes.len(), self.name());
        match self {
            Self::F32 => out.extend(components(bytes, f32_from_le)),
            Self::F16 => out.extend(components(bytes, f16_from_le)),
            Self::Bf16 => out.extend(components(bytes, bf16_from_le)),
        }
    }
}

impl Dtype {
    /// Writes the components in `bytes` to the front of `out`, and says how many they are.
    pub(crate) fn widen_into(self, bytes: &[u8], out: &mut [f32]) -> usize {
        fn fill(out: &mut [f32], components: impl Iterator<Item = f32>) {
            out.iter_mut().zip(components).for_each(|(out, component)| *out = component);
        }
        match self {
            Self::F32 => fill(out, components(bytes, f32_from_le)),
            Self::F16 => fill(out, components(bytes, f16_from_le)),
            Self::Bf16 => fill(out, components(bytes, bf16_from_le)),
        }
        bytes.len() / self.bytes()
    }
}

fn components<const N: usize>(bytes: &[u8], widen: fn([u8; N]) -> f32) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<N>().0.iter().map(move |&component| widen(component))
}

pub(crate) fn f32_from_le(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

pub(crate) fn f16_from_le(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

pub(crate) fn bf16_from_le(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_safetensors() {
        for (dtype, name, bytes) in [(Dtype::F32, "F32", 4), (Dtype::F16, "F16", 2), (Dtype::Bf16, "BF16", 2)] {
            assert_eq!((dtype.name(), dtype.bytes()), (name, bytes));
            assert_eq!(Dtype::parse(name), Some(dtype));
        }
        assert_eq!(Dtype::parse("f32"), None);
        assert_eq!(Dtype::parse("F64"), None);
    }

    #[test]
    fn widening_is_exact() {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let values = [1.0, -0.0, 0.1, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), f32::INFINITY];
        let mut out = vec![7.0];
        Dtype::F32.widen(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(), &mut out);
        assert_eq!(bits(&out[1..]), bits(&values));
        // 1, -2, the largest, the smallest normal, the smallest of all, minus infinity.
        let halves: [u16; 6] = [0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0xfc00];
        out.clear();
        Dtype::F16.widen(bytemuck::cast_slice(&halves), &mut out);
        assert_eq!(out, [1.0, -2.0, 65504.0, 2f32.powi(-14), 2f32.powi(-24), f32::NEG_INFINITY]);
        let upper: [u16; 4] = [0x3f80, 0xc000, 0x7f7f, 0x0001];
        out.clear();
        Dtype::Bf16.widen(bytemuck::cast_slice(&upper), &mut out);
        assert_eq!(out, [1.0, -2.0, f32::from_bits(0x7f7f_0000), f32::from_bits(0x0001_0000)]);
    }

    #[test]
    #[should_panic(expected = "3 bytes of BF16")]
    fn half_a_component_is_a_mistake() {
        Dtype::Bf16.widen(&[1, 2, 3], &mut Vec::new());
    }
}
