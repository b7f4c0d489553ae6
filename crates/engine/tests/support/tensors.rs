//! Changes to the weights of a model folder.

use std::path::Path;

/// Puts `change` to the f32 values of the tensor `name` in `folder`, in a new file.
pub(crate) fn change_tensor(folder: &Path, name: &str, change: impl Fn(f32) -> f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    assert_eq!(json[name]["dtype"], "F32", "{json}");
    let offset = |i: usize| header + json[name]["data_offsets"][i].as_u64().unwrap() as usize;
    for value in bytes[offset(0)..offset(1)].as_chunks_mut::<4>().0 {
        *value = change(f32::from_le_bytes(*value)).to_le_bytes();
    }
    replace(&path, &bytes);
}

/// A file that is mapped must not be shortened: the new one takes its name.
pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}
