//! Unpacks the parts of Swagger UI that `/docs` serves, with its licence. They come as a zip archive inside a crate, so that a build
//! needs no network beyond the registry's.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Cursor, Read as _};
use std::path::PathBuf;
use std::{env, fs};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

/// The archive's one folder. With another version, src/http/docs/swagger-ui-bundle.js.LICENSE.txt has to be taken anew,
/// from the npm package `swagger-ui-dist` of that version: the archive lacks it.
const FOLDER: &str = "swagger-ui-5.32.6";

const FILES: [&str; 5] =
    ["dist/swagger-ui-bundle.js", "dist/swagger-ui.css", "dist/favicon-32x32.png", "LICENSE", "NOTICE"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for file in FILES {
        let path = format!("{FOLDER}/{file}");
        let mut content = Vec::new();
        let mut entry = archive.by_name(&path).map_err(|error| format!("Swagger UI has no {path}: {error}"))?;
        entry.read_to_end(&mut content)?;
        let name = file.rsplit('/').next().unwrap_or(file);
        fs::write(out.join(name), content)?;
    }
    Ok(())
}
