//! A mapping as a table, CSV or JSON, and how it gets into a file.

use super::catalog::{Catalog, Control};
use super::mapping::Match;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Columns of a table that is not shown on a terminal.
const WIDTH_DEFAULT: usize = 100;
const WIDTH_MIN: usize = 60;
const WIDTH_MAX: usize = 120;

/// No id takes more of a row than this.
const ID_WIDTH_MAX: usize = 28;

/// How wide a table may be.
pub(super) fn width(into_file: bool) -> usize {
    let terminal = if into_file { None } else { console::Term::stdout().size_checked() };
    terminal.map_or(WIDTH_DEFAULT, |(_rows, columns)| usize::from(columns).clamp(WIDTH_MIN, WIDTH_MAX))
}

/// Rows of matches below each other, with the source named once.
pub(super) fn table(source: &Catalog, target: &Catalog, matches: &[Vec<Match>], width: usize) -> String {
    let widest = |controls: &[Control], heading: &str| {
        controls.iter().map(|c| c.id.width()).chain([heading.width()]).max().unwrap_or(0).min(ID_WIDTH_MAX)
    };
    let (source_width, target_width) = (widest(&source.controls, "SOURCE"), widest(&target.controls, "TARGET"));
    // Two spaces between columns; similarities and scores take ten and five.
    let title_width = width.saturating_sub(source_width + target_width + 10 + 5 + 4 * 2).max(10);
    let mut out = String::new();
    let mut row = |cells: [&str; 5]| {
        let line = format!(
            "{}  {}  {}  {:>10}  {:>5}",
            fit(cells[0], source_width),
            fit(cells[1], target_width),
            fit(cells[2], title_width),
            cells[3],
            cells[4]
        );
        // Writing into a string does not fail.
        let _ = writeln!(out, "{line}");
    };
    row(["SOURCE", "TARGET", "TITLE", "SIMILARITY", "SCORE"]);
    for (control, matches) in source.controls.iter().zip(matches) {
        for (i, (found, m)) in resolved(target, matches).enumerate() {
            let id = if i == 0 { control.id.as_str() } else { "" };
            let label = if found.title.is_empty() { &found.text } else { &found.title };
            row([id, &found.id, label, &format!("{:.3}", m.similarity), &format!("{:.3}", m.score)]);
        }
    }
    out
}

/// `text` on one line, in exactly `width` columns.
fn fit(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let room = if one_line.width() > width { width.saturating_sub(1) } else { width };
    for c in one_line.chars() {
        let c_width = c.width().unwrap_or(0);
        if used + c_width > room {
            break;
        }
        out.push(c);
        used += c_width;
    }
    if one_line.width() > width {
        out.push('…');
        used += 1;
    }
    out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
    out
}

/// One row for each match.
pub(super) fn csv(source: &Catalog, target: &Catalog, matches: &[Vec<Match>]) -> Result<String, String> {
    #[derive(Serialize)]
    struct Row<'a> {
        source_id: &'a str,
        source_title: &'a str,
        rank: usize,
        target_id: &'a str,
        target_title: &'a str,
        similarity: f32,
        score: f32,
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (control, matches) in source.controls.iter().zip(matches) {
        for (i, (found, m)) in resolved(target, matches).enumerate() {
            writer
                .serialize(Row {
                    source_id: &control.id,
                    source_title: &control.title,
                    rank: i + 1,
                    target_id: &found.id,
                    target_title: &found.title,
                    similarity: m.similarity,
                    score: m.score,
                })
                .map_err(|error| error.to_string())?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// One object for each source control.
pub(super) fn json(source: &Catalog, target: &Catalog, matches: &[Vec<Match>]) -> Result<String, String> {
    #[derive(Serialize)]
    struct Mapping<'a> {
        source: &'a str,
        target: &'a str,
        mappings: Vec<Entry<'a>>,
    }
    #[derive(Serialize)]
    struct Entry<'a> {
        control_id: &'a str,
        title: &'a str,
        matches: Vec<Found<'a>>,
    }
    #[derive(Serialize)]
    struct Found<'a> {
        control_id: &'a str,
        title: &'a str,
        similarity: f32,
        score: f32,
    }
    let mappings = source
        .controls
        .iter()
        .zip(matches)
        .map(|(control, matches)| Entry {
            control_id: &control.id,
            title: &control.title,
            matches: resolved(target, matches)
                .map(|(found, m)| Found {
                    control_id: &found.id,
                    title: &found.title,
                    similarity: m.similarity,
                    score: m.score,
                })
                .collect(),
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&Mapping { source: &source.name, target: &target.name, mappings })
        .map_err(|error| error.to_string())?;
    text.push('\n');
    Ok(text)
}

fn resolved<'a>(target: &'a Catalog, matches: &'a [Match]) -> impl Iterator<Item = (&'a Control, &'a Match)> {
    matches.iter().filter_map(|m| Some((target.controls.get(m.target)?, m)))
}

/// Whether [`write()`] has a chance.
pub(super) fn check_writable(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err(format!("{}: is a folder", path.display()));
    }
    let folder = folder_of(path);
    if folder.is_dir() { Ok(()) } else { Err(format!("{}: there is no folder {}", path.display(), folder.display())) }
}

/// Writes beside `path`, then renames: at no moment is there half a file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let shown = path.display();
    // A link is followed, as `>` would. What does not exist yet stays as it was given.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // Pipes and devices (/dev/stdout) can not be replaced.
    if path.exists() && !path.is_file() {
        return std::fs::write(&path, bytes).map_err(|error| format!("{shown}: {error}"));
    }
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes a file like any other, less what the umask takes.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder_of(&path)).map_err(|error| format!("{shown}: {error}"))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|error| format!("{shown}: {error}"))?;
    file.persist(&path).map_err(|error| format!("{shown}: {}", error.error))?;
    Ok(())
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogs() -> (Catalog, Catalog) {
        let control = |id: &str, title: &str, text: &str| Control {
            id: id.to_owned(),
            title: title.to_owned(),
            text: text.to_owned(),
        };
        let source = Catalog {
            name: "checks".into(),
            controls: vec![control("mfa", "MFA", "MFA is on"), control("disk", "", "Disks are encrypted")],
        };
        let target = Catalog {
            name: "policy".into(),
            controls: vec![
                control("AC-1", "Multi-factor, for all", "x"),
                control(
                    "SC-1",
                    "",
                    "Data at rest is encrypted,\nwherever it is, by whoever holds it, for as long as it is held",
                ),
            ],
        };
        (source, target)
    }

    fn matches() -> Vec<Vec<Match>> {
        let m = |target, similarity, score| Match { target, similarity, score };
        vec![vec![m(0, 0.5, 0.9), m(1, 0.1, 0.25)], vec![m(1, 0.75, 0.8)]]
    }

    #[test]
    fn a_table_fits_its_width() {
        let (source, target) = catalogs();
        let text = table(&source, &target, &matches(), 60);
        let expected = "\
SOURCE  TARGET  TITLE                      SIMILARITY  SCORE
mfa     AC-1    Multi-factor, for all           0.500  0.900
        SC-1    Data at rest is encrypte…       0.100  0.250
disk    SC-1    Data at rest is encrypte…       0.750  0.800
";
        assert_eq!(text, expected);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let (source, target) = catalogs();
        let text = csv(&source, &target, &matches()).expect("in memory");
        let expected = "\
source_id,source_title,rank,target_id,target_title,similarity,score
mfa,MFA,1,AC-1,\"Multi-factor, for all\",0.5,0.9
mfa,MFA,2,SC-1,,0.1,0.25
disk,,1,SC-1,,0.75,0.8
";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_holds_both_scores() {
        let (source, target) = catalogs();
        let text = json(&source, &target, &matches()).expect("in memory");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["source"], "checks");
        assert_eq!(value["mappings"][0]["matches"][0]["control_id"], "AC-1");
        assert!(text.contains("\"similarity\": 0.1,"), "{text}");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(fit("日本語", 6), "日本語");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日… ");
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.csv");
        write(&path, b"one").expect("written");
        write(&path, b"two").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 1);
        assert!(check_writable(&folder.path().join("none/out.csv")).is_err());
        assert!(check_writable(folder.path()).is_err());
    }
}
