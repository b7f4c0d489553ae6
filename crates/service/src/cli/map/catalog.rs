//! Catalogs of controls, from JSON or CSV. Whatever is wrong is told with the file and the place in it.

use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// The controls of one standard, law or product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Catalog {
    /// Its name: as the file gives it, else the file's own.
    pub(super) name: String,
    /// In the order of the file.
    pub(super) controls: Vec<Control>,
}

/// One control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// Unique in its catalog.
    pub(super) id: String,
    /// May be empty.
    pub(super) title: String,
    /// Never blank.
    pub(super) text: String,
}

impl Control {
    /// What models read: the text, after the title where the text does not start with it already.
    pub(super) fn full_text(&self) -> String {
        if self.title.is_empty() || self.text.starts_with(&self.title) {
            self.text.clone()
        } else {
            format!("{}\n{}", self.title, self.text)
        }
    }
}

/// Reads a catalog. The error is one line that names the file and the place.
pub(super) fn read(path: &Path) -> Result<Catalog, String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    parse(&bytes, stem).map_err(|error| format!("{shown}: {error}"))
}

pub(super) fn parse(bytes: &[u8], default_name: String) -> Result<Catalog, String> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("line {line}: not UTF-8")
    })?;
    // By content, because names lie. A CSV file starts with the name of a column.
    let catalog = match text.trim_start().chars().next() {
        None => return Err("the file is empty".to_owned()),
        Some('{' | '[') => parse_json(text, default_name)?,
        Some(_) => Catalog { name: default_name, controls: parse_csv(text)? },
    };
    if catalog.controls.is_empty() {
        return Err("there are no controls in it".to_owned());
    }
    Ok(catalog)
}

fn parse_json(text: &str, default_name: String) -> Result<Catalog, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))?;
    let (name, controls) = match value {
        Value::Array(controls) => (default_name, controls),
        Value::Object(mut object) => {
            let name = object.remove("name").and_then(|name| name.as_str().map(str::to_owned));
            match object.remove("controls") {
                Some(Value::Array(controls)) => (name.unwrap_or(default_name), controls),
                Some(_) => return Err("\"controls\" is not a list".to_owned()),
                None => return Err("there is no list \"controls\"".to_owned()),
            }
        }
        _ => return Err("neither an object nor a list".to_owned()),
    };
    let mut builder = Builder::default();
    for (index, control) in controls.into_iter().enumerate() {
        let place = format!("control {}", index + 1);
        let Value::Object(mut fields) = control else { return Err(format!("{place} is not an object")) };
        let mut take = |key: &str| match fields.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(format!("{place}: \"{key}\" is not a string")),
        };
        let required = |key: &str, value: Option<String>| value.ok_or_else(|| format!("{place} has no \"{key}\""));
        let id = required("control_id", take("control_id")?)?;
        let title = take("title")?.unwrap_or_default();
        let text = required("text", take("text")?)?;
        builder.add(place, &id, &title, &text)?;
    }
    Ok(Catalog { name, controls: builder.controls })
}

fn parse_csv(text: &str) -> Result<Vec<Control>, String> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| format!("not valid CSV: {error}"))?.clone();
    let column = |name: &str| headers.iter().position(|header| header.trim().eq_ignore_ascii_case(name));
    let required = |name: &str| {
        column(name).ok_or_else(|| {
            let found: Vec<&str> = headers.iter().map(str::trim).collect();
            format!("line 1: there is no column {name}; the columns are {}", shown(&found.join(", ")))
        })
    };
    let (id, title, text) = (required("control_id")?, column("title"), required("text")?);
    let mut builder = Builder::default();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| format!("not valid CSV: {error}"))? {
        let line = record.position().map_or(0, csv::Position::line);
        let place = format!("line {line}");
        if record.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        if record.len() != headers.len() {
            return Err(format!("{place} has {} fields, but there are {} columns", record.len(), headers.len()));
        }
        let field = |column: Option<usize>| column.and_then(|column| record.get(column)).unwrap_or_default();
        builder.add(place, field(Some(id)), field(title), field(Some(text)))?;
    }
    Ok(builder.controls)
}

/// A piece of the file as messages quote it: one line whatever is in it, and not all of what is long. A file that is no
/// catalog at all may have megabytes in its first line, or bytes that a terminal obeys.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let mut shown: String = text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Collects controls, and refuses those that can not be mapped.
#[derive(Default)]
struct Builder {
    controls: Vec<Control>,
    places: HashMap<String, String>,
}

impl Builder {
    fn add(&mut self, place: String, id: &str, title: &str, text: &str) -> Result<(), String> {
        let (id, title, text) = (id.trim(), title.trim(), text.trim());
        if id.is_empty() {
            return Err(format!("{place}: control_id is empty"));
        }
        if text.is_empty() {
            return Err(format!("{place}: the text of {} is empty", shown(id)));
        }
        if let Some(first) = self.places.get(id) {
            return Err(format!("{place}: control_id {} is taken, by {first}", shown(id)));
        }
        self.places.insert(id.to_owned(), place);
        self.controls.push(Control { id: id.to_owned(), title: title.to_owned(), text: text.to_owned() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, expected: Result<&[(&str, &str, &str)], &str>) {
        let actual = parse(content.as_bytes(), "file".to_owned());
        let actual = actual.as_ref().map(|catalog| {
            catalog.controls.iter().map(|c| (c.id.as_str(), c.title.as_str(), c.text.as_str())).collect::<Vec<_>>()
        });
        assert_eq!(actual.as_deref().map_err(|error| error.as_str()), expected, "{content}");
    }

    #[test]
    fn json() {
        check(
            r#"{"name": "n", "controls": [{"control_id": "A", "title": "t", "text": "x"}, {"control_id": "B", "text": "y"}]}"#,
            Ok(&[("A", "t", "x"), ("B", "", "y")]),
        );
        check("\u{feff} [{\"control_id\": \"A\", \"text\": \"x\", \"other\": 1}]", Ok(&[("A", "", "x")]));
        check("", Err("the file is empty"));
        check("[]", Err("there are no controls in it"));
        check("{}", Err("there is no list \"controls\""));
        check("{\"controls\": 1}", Err("\"controls\" is not a list"));
        check("[1]", Err("control 1 is not an object"));
        check("[{\"control_id\": 1, \"text\": \"x\"}]", Err("control 1: \"control_id\" is not a string"));
        check("[{\"control_id\": \"A\"}]", Err("control 1 has no \"text\""));
        check("[{\"control_id\": \"A\", \"text\": \" \"}]", Err("control 1: the text of A is empty"));
        check(
            r#"[{"control_id": "A", "text": "x"}, {"control_id": "A", "text": "y"}]"#,
            Err("control 2: control_id A is taken, by control 1"),
        );
        check("[{]", Err("not valid JSON: key must be a string at line 1 column 3"));
    }

    #[test]
    fn csv() {
        check(
            "\u{feff}text,other,Control_ID,title\r\n\"x, \"\"y\"\"\nz\",o,A,t\r\n\r\nw,,B,\r\n",
            Ok(&[("A", "t", "x, \"y\"\nz"), ("B", "", "w")]),
        );
        check("control_id,text\n", Err("there are no controls in it"));
        check("id,text\nA,x\n", Err("line 1: there is no column control_id; the columns are id, text"));
        check("control_id,text\nA,x\nB,\n", Err("line 3: the text of B is empty"));
        check("control_id,text\nA,\"x\ny\"\nA,z\n", Err("line 4: control_id A is taken, by line 2"));
        check("control_id,text\nA,x,y\n", Err("line 2 has 3 fields, but there are 2 columns"));
    }

    #[test]
    fn messages_are_one_short_line() {
        check("\"a\nb\",\u{1b}[2J\n1,2\n", Err("line 1: there is no column control_id; the columns are a b,  [2J"));
        check("control_id,text\n\"A\r\nB\",\n", Err("line 2: the text of A  B is empty"));
        let long = parse("x".repeat(1_000_000).as_bytes(), String::new()).expect_err("no catalog");
        assert!(long.len() < 300 && long.ends_with("xxx..."), "{long}");
    }

    #[test]
    fn other_encodings_are_named() {
        assert_eq!(parse(b"control_id,text\nA,\xe9t\xe9\n", String::new()), Err("line 2: not UTF-8".to_owned()));
    }

    #[test]
    fn the_title_is_read_once() {
        let control = |title: &str, text: &str| Control { id: "A".into(), title: title.into(), text: text.into() };
        assert_eq!(control("T", "x").full_text(), "T\nx");
        assert_eq!(control("T", "T\nx").full_text(), "T\nx");
        assert_eq!(control("", "x").full_text(), "x");
    }
}
