//! Vectors as JSON text.

use zmij::Buffer;

/// Characters to set aside for each component; a unit vector's components take 12 on average.
const RESERVE_PER_COMPONENT: usize = 13;

/// Appends `vector` to `out` as a JSON array.
///
/// Each number is the shortest that parses back to the same `f32` (so a reader that goes through `f64` sees
/// `0.1`, not `0.10000000149011612`). Components must be finite: JSON has nothing else. In a release build anything
/// else becomes `null`.
pub fn write_f32_json(vector: &[f32], out: &mut Vec<u8>) {
    out.reserve(2 + vector.len() * RESERVE_PER_COMPONENT);
    let mut buffer = Buffer::new();
    out.push(b'[');
    for (i, &component) in vector.iter().enumerate() {
        debug_assert!(component.is_finite(), "component {i} is {component}");
        if i > 0 {
            out.push(b',');
        }
        let text = if component.is_finite() { buffer.format_finite(component) } else { "null" };
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vector: &[f32], expected: &str) {
        let mut out = Vec::new();
        write_f32_json(vector, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn shortest_form() {
        check(&[], "[]");
        check(&[0.1, -0.2, 1.0, 0.0, -0.0], "[0.1,-0.2,1.0,0.0,-0.0]");
        check(&[1e-30, 3.4028235e38, 1e-45, 16777216.0], "[1e-30,3.4028235e+38,1e-45,16777216.0]");
    }
}
