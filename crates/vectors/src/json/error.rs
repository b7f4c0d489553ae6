//! What is wrong with a body, in the words of the framework that clients know (FastAPI with pydantic 2).

use std::fmt;

/// One step on the way to the place of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loc {
    /// A key of an object, or `body` at the start.
    Key(&'static str),
    /// A position in an array; for malformed JSON, in the body, in characters.
    Index(usize),
}

/// Pydantic's name for what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The body is not JSON, at the position given.
    JsonInvalid,
    /// A required field is absent.
    Missing,
    /// The body is JSON but not an object.
    ModelAttributesType,
    /// Not a number.
    FloatType,
    /// NaN, an infinity, or a number beyond the range of `f32`.
    FiniteNumber,
    /// Not an array.
    ListType,
    /// An array longer than the limits allow.
    TooLong,
    /// Not an integer.
    IntType,
    /// A number with a fraction where an integer is needed.
    IntFromFloat,
    /// A string that is no integer.
    IntParsing,
    /// A number below the least one allowed.
    GreaterThanEqual,
    /// A number above the largest one allowed.
    LessThanEqual,
    /// Not a string.
    StringType,
    /// Well typed, but without meaning: unequal lengths, a zero vector, a key given twice.
    ValueError,
}

impl ErrorKind {
    /// The name on the wire (`type` in the error's JSON).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JsonInvalid => "json_invalid",
            Self::Missing => "missing",
            Self::ModelAttributesType => "model_attributes_type",
            Self::FloatType => "float_type",
            Self::FiniteNumber => "finite_number",
            Self::ListType => "list_type",
            Self::TooLong => "too_long",
            Self::IntType => "int_type",
            Self::IntFromFloat => "int_from_float",
            Self::IntParsing => "int_parsing",
            Self::GreaterThanEqual => "greater_than_equal",
            Self::LessThanEqual => "less_than_equal",
            Self::StringType => "string_type",
            Self::ValueError => "value_error",
        }
    }
}

/// Why a body was refused: the first thing wrong in it, in the order of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyError {
    /// The way to the place, from `body`: `["body", "target_embeddings", 3, 17]`.
    pub loc: Vec<Loc>,
    /// For people.
    pub msg: String,
    /// For programs.
    pub kind: ErrorKind,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.loc.iter().enumerate() {
            match step {
                Loc::Key(key) if i == 0 => f.write_str(key)?,
                Loc::Key(key) => write!(f, ".{key}")?,
                Loc::Index(index) => write!(f, "[{index}]")?,
            }
        }
        write!(f, ": {}", self.msg)
    }
}

impl std::error::Error for BodyError {}

impl BodyError {
    pub(crate) fn new(loc: &[Loc], kind: ErrorKind, msg: impl Into<String>) -> Self {
        let loc = std::iter::once(Loc::Key("body")).chain(loc.iter().cloned()).collect();
        Self { loc, msg: msg.into(), kind }
    }

    /// A value of the right type that makes no sense, in pydantic's manner.
    pub(crate) fn value(loc: &[Loc], msg: impl fmt::Display) -> Self {
        Self::new(loc, ErrorKind::ValueError, format!("Value error, {msg}"))
    }
}

/// What is at byte `at` is not JSON. [`in_characters`] makes a position for clients of it.
#[cold]
pub(crate) fn invalid(at: usize, problem: impl fmt::Display) -> BodyError {
    BodyError::new(&[Loc::Index(at)], ErrorKind::JsonInvalid, problem.to_string())
}

/// `error`, which was found in `text`, a part of a body with so many characters before it: the place of malformed JSON is
/// then counted as Python counts it, in characters of the body.
#[cold]
pub(crate) fn in_characters(mut error: BodyError, text: &[u8], characters_before: usize) -> BodyError {
    if error.kind == ErrorKind::JsonInvalid
        && let Some(Loc::Index(at)) = error.loc.last_mut()
    {
        *at = characters_before + character_position(text, *at);
    }
    error
}

/// How many characters of `body` begin before byte `at`. Bytes that are no UTF-8 count as one each, but for those that
/// look like the middle of a character.
pub fn character_position(body: &[u8], at: usize) -> usize {
    body[..at.min(body.len())].iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

/// What is at byte `at` is not what JSON needs there.
#[cold]
pub(crate) fn malformed(bytes: &[u8], at: usize, expected: &str) -> BodyError {
    match bytes.get(at) {
        None => invalid(at, format_args!("expected {expected}, found the end")),
        Some(byte) if byte.is_ascii_graphic() => {
            invalid(at, format_args!("expected {expected}, found '{}'", char::from(*byte)))
        }
        Some(byte) => invalid(at, format_args!("expected {expected}, found 0x{byte:02x}")),
    }
}
