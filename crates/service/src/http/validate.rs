//! Checks of JSON bodies, in the words of pydantic 2. All that is wrong is reported together, up to a bound.
//!
//! A field that is wrong is reported and stands in as a default value, so that the fields after it are checked, too;
//! [`Problems::finish`] sees to it that no such value is used.
//!
//! Deliberately absent: pydantic's conversions, but for those of integers (`"5"` and 5.0 for 5; not `true` for 1). An unknown field is ignored, and of a
//! repeated one the last counts, both as in the original.

use super::error::{ApiError, Problem, Step};
use serde_json::{Map, Value, json};

/// Problems beyond this are not reported: a list of thousands of wrong items needs no list of thousands of errors.
const PROBLEMS_MAX: usize = 100;

/// What was found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one. What was said before is not said again: a default that is wrong would be, for each item.
    pub(super) fn push(&mut self, problem: Problem) {
        if self.0.len() < PROBLEMS_MAX && !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// `value`, if nothing was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, ApiError> {
        if self.0.is_empty() { Ok(value) } else { Err(ApiError::Invalid(self.0)) }
    }
}

/// An object whose fields are being taken.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
    loc: Vec<Step>,
}

impl Fields {
    /// The object that is the body.
    pub(super) fn of_body(bytes: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(bytes).map_err(|error| ApiError::problem(json_invalid(bytes, &error)))?;
        if value == Value::Null {
            return Err(ApiError::problem(Problem::no_body()));
        }
        let mut problems = Problems::default();
        let fields = Self::of_value(value, vec![Step::Key("body")], &mut problems);
        problems.finish(fields)
    }

    /// The object at position `index` of the list `list`.
    pub(super) fn of_item(value: Value, list: &'static str, index: usize, problems: &mut Problems) -> Self {
        Self::of_value(value, vec![Step::Key("body"), Step::Key(list), Step::Index(index)], problems)
    }

    fn of_value(value: Value, loc: Vec<Step>, problems: &mut Problems) -> Self {
        let map = match value {
            Value::Object(map) => map,
            other => {
                problems.push(
                    Problem::new(
                        "model_attributes_type",
                        loc.clone(),
                        "Input should be a valid dictionary or object to extract fields from",
                    )
                    .with_input(&other),
                );
                // Nothing more to say about a thing that is no object: its fields are present and fine.
                return Self { map: Map::new(), loc: Vec::new() };
            }
        };
        Self { map, loc }
    }

    /// Where a field of this object is.
    pub(super) fn loc_of(&self, key: &'static str) -> Vec<Step> {
        self.loc.iter().cloned().chain([Step::Key(key)]).collect()
    }

    /// A required string; it may be empty.
    pub(super) fn string(&mut self, key: &'static str, problems: &mut Problems) -> String {
        match self.required(key, problems) {
            Some(Value::String(s)) => s,
            Some(other) => {
                problems.push(self.wrong(key, "string_type", "Input should be a valid string", &other));
                String::new()
            }
            None => String::new(),
        }
    }

    /// A required text for a model: a string with something in it. White space alone would get a vector, too, and one
    /// that is near to anything; whoever sends it has lost a text on the way.
    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems) -> String {
        match self.required(key, problems) {
            Some(Value::String(s)) if s.is_empty() => {
                problems.push(
                    Problem::new("string_too_short", self.loc_of(key), "String should have at least 1 character")
                        .with_input(&Value::String(s))
                        .with_ctx(json!({ "min_length": 1 })),
                );
                String::new()
            }
            Some(Value::String(s)) if s.trim().is_empty() => {
                problems.push(self.wrong(key, "value_error", "Value error, the text is only white space", &s.into()));
                String::new()
            }
            Some(Value::String(s)) => s,
            Some(other) => {
                problems.push(self.wrong(key, "string_type", "Input should be a valid string", &other));
                String::new()
            }
            None => String::new(),
        }
    }

    /// A required list of at most `items_max`.
    pub(super) fn list(&mut self, key: &'static str, items_max: usize, problems: &mut Problems) -> Vec<Value> {
        match self.required(key, problems) {
            Some(Value::Array(items)) if items.len() > items_max => {
                let actual = items.len();
                let msg = format!("List should have at most {items_max} items after validation, not {actual}");
                problems.push(
                    Problem::new("too_long", self.loc_of(key), msg)
                        .with_ctx(json!({ "field_type": "List", "max_length": items_max, "actual_length": actual })),
                );
                Vec::new()
            }
            Some(Value::Array(items)) => items,
            Some(other) => {
                problems.push(self.wrong(key, "list_type", "Input should be a valid list", &other));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// An optional string.
    pub(super) fn optional_string(&mut self, key: &'static str, problems: &mut Problems) -> Option<String> {
        match self.optional(key)? {
            Value::String(s) => Some(s),
            other => {
                problems.push(self.wrong(key, "string_type", "Input should be a valid string", &other));
                None
            }
        }
    }

    /// An optional whole number, at least 1; taken as leniently as `nexus_vectors` takes one. What is beyond `usize` is
    /// `usize::MAX`.
    pub(super) fn optional_positive(&mut self, key: &'static str, problems: &mut Problems) -> Option<usize> {
        let value = self.optional(key)?;
        let whole = match whole_number(&value) {
            Ok(whole) => whole,
            Err((kind, msg)) => {
                problems.push(self.wrong(key, kind, msg, &value));
                return None;
            }
        };
        if whole == 0 {
            let msg = "Input should be greater than or equal to 1";
            problems.push(self.wrong(key, "greater_than_equal", msg, &value).with_ctx(json!({ "ge": 1 })));
            return None;
        }
        Some(whole)
    }

    /// An optional word out of two.
    pub(super) fn optional_choice(
        &mut self,
        key: &'static str,
        choices: [&'static str; 2],
        problems: &mut Problems,
    ) -> Option<&'static str> {
        let value = self.optional(key)?;
        let choice = choices.into_iter().find(|choice| value == *choice);
        if choice.is_none() {
            let expected = format!("'{}' or '{}'", choices[0], choices[1]);
            problems.push(
                self.wrong(key, "literal_error", &format!("Input should be {expected}"), &value)
                    .with_ctx(json!({ "expected": expected })),
            );
        }
        choice
    }

    fn required(&mut self, key: &'static str, problems: &mut Problems) -> Option<Value> {
        let value = self.map.remove(key);
        // Without a location this is not an object, which was reported.
        if value.is_none() && !self.loc.is_empty() {
            problems.push(Problem::new("missing", self.loc_of(key), "Field required"));
        }
        value
    }

    /// `null` is as good as absent.
    fn optional(&mut self, key: &'static str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &'static str, kind: &'static str, msg: &str, input: &Value) -> Problem {
        Problem::new(kind, self.loc_of(key), msg).with_input(input)
    }
}

/// `value` as a whole number, saturating at both ends; or the kind of problem and what to say.
fn whole_number(value: &Value) -> Result<usize, (&'static str, &'static str)> {
    match value {
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(n), _, _) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
            (None, Some(_), _) => Ok(0),
            // 3.0 is 3, and 1e30 is more than there will ever be.
            (None, None, Some(x)) if x.fract() == 0.0 => Ok(x as usize),
            _ => Err(("int_from_float", "Input should be a valid integer, got a number with a fractional part")),
        },
        Value::String(text) => match nexus_vectors::parse_integer(text) {
            Some(n) => Ok(usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
            None => Err(("int_parsing", "Input should be a valid integer, unable to parse string as an integer")),
        },
        _ => Err(("int_type", "Input should be a valid integer")),
    }
}

/// Malformed JSON, in the framework's words; the location is the position in the body, in characters.
fn json_invalid(bytes: &[u8], error: &serde_json::Error) -> Problem {
    let line_start = match error.line() {
        0 | 1 => 0,
        line => bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
    };
    // Columns count from 1, and 0 is the line's start; an end that comes too early is told at the byte before it.
    let at = if error.is_eof() { bytes.len() } else { line_start + error.column().saturating_sub(1) };
    let message = error.to_string();
    // The place is told in `loc`, counted differently.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    Problem::json_invalid(nexus_vectors::character_position(bytes, at), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_of(bytes: &[u8]) -> Problem {
        match Fields::of_body(bytes) {
            Err(ApiError::Invalid(mut problems)) if problems.len() == 1 => problems.remove(0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn malformed_json_is_located_in_characters() {
        for (body, at) in [
            (b"{".as_slice(), 1),
            (b"{\"a\": nul}", 9),
            ("{\"ä\": nul}".as_bytes(), 9),
            (b"{\n  \"a\": x\n}", 9),
            (b"\"\\ud800\"", 7),
            (b"{} {}", 3),
        ] {
            let problem = problem_of(body);
            assert_eq!(problem.kind, "json_invalid");
            assert_eq!(problem.loc, [Step::Key("body"), Step::Index(at)], "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn hostile_bodies_are_refused_quickly() {
        let brackets = "[".repeat(1_000_000).into_bytes();
        let objects = "{\"a\":".repeat(1_000_000).into_bytes();
        for body in [brackets.as_slice(), &objects, b"\"\xff\"", b"{\"text\": \"\xc3\x28\"}", b"{\"x\": 1e999}", b"NaN"]
        {
            let started = std::time::Instant::now();
            assert_eq!(problem_of(body).kind, "json_invalid");
            assert!(started.elapsed().as_millis() < 100);
        }
    }

    #[test]
    fn whole_numbers() {
        for (value, expected) in [
            (json!(1), Ok(Some(1))),
            (json!(3.0), Ok(Some(3))),
            (json!(1e30), Ok(Some(usize::MAX))),
            (json!(null), Ok(None)),
            (json!(0), Err("greater_than_equal")),
            (json!(-1), Err("greater_than_equal")),
            (json!(-3.0), Err("greater_than_equal")),
            (json!(1.5), Err("int_from_float")),
            (json!("5"), Ok(Some(5))),
            (json!(" +5.0 "), Ok(Some(5))),
            (json!("-5"), Err("greater_than_equal")),
            (json!("9".repeat(100)), Ok(Some(i64::MAX as usize))),
            (json!("1.5"), Err("int_parsing")),
            (json!(""), Err("int_parsing")),
            (json!([5]), Err("int_type")),
            (json!(true), Err("int_type")),
        ] {
            let mut problems = Problems::default();
            let body = json!({ "n": value }).to_string();
            let number = Fields::of_body(body.as_bytes()).expect("an object").optional_positive("n", &mut problems);
            let actual = match problems.0.first() {
                None => Ok(number),
                Some(problem) => Err(problem.kind),
            };
            assert_eq!(actual, expected, "{body}");
        }
    }

    #[test]
    fn the_number_of_reported_problems_is_bounded() {
        let mut problems = Problems::default();
        for i in 0..1000 {
            Fields::of_item(json!(i), "items", i, &mut problems);
        }
        assert_eq!(problems.0.len(), PROBLEMS_MAX);
    }
}
