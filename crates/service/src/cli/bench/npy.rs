//! Matrices of f32 as NumPy reads them.
//!
//! Format 1.0: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

/// Bytes before the dictionary: magic, version, the dictionary's length.
const PREFIX_BYTES: usize = 10;

/// The file of a row-major matrix.
pub(super) fn matrix(values: &[f32], columns: usize) -> Vec<u8> {
    let rows = values.len() / columns.max(1);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // The data begins at a multiple of 64, and the header ends with a line feed.
    let padding = 63 - (PREFIX_BYTES + header.len()) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    // At most 128 bytes: four words and two numbers.
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    #[test]
    fn header_and_values() {
        for columns in [1, 3, 4096] {
            let values: Vec<f32> = (0..2 * columns).map(|i| i as f32).collect();
            let file = super::matrix(&values, columns);
            let header_bytes = usize::from(u16::from_le_bytes([file[8], file[9]]));
            let data = super::PREFIX_BYTES + header_bytes;
            assert_eq!(data % 64, 0);
            assert_eq!(file[data - 1], b'\n');
            assert!(String::from_utf8_lossy(&file[..data]).contains(&format!("'shape': (2, {columns})")));
            let last: [u8; 4] = file[file.len() - 4..].try_into().unwrap();
            assert_eq!((file.len() - data, f32::from_le_bytes(last)), (values.len() * 4, values[values.len() - 1]));
        }
    }
}
