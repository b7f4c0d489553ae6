//! Catalogs as fuzz targets see them.

use super::catalog::{Control, parse};

/// The control's `control_id`, `title` and `text`.
pub type Fields = (String, String, String);

/// A catalog, JSON or CSV, or one line on what is wrong with it.
pub fn catalog(bytes: &[u8]) -> Result<Vec<Fields>, String> {
    let catalog = parse(bytes, "file".to_owned())?;
    Ok(catalog.controls.into_iter().map(|Control { id, title, text }| (id, title, text)).collect())
}
