//! Names of sets, and the names of their files.

use std::fmt;

/// The longest name of a set: with what is added to it, every file system takes it as a file's name.
const NAME_CHARS_MAX: usize = 128;
const EXTENSION: &str = ".safetensors";
const TEMPORARY: &str = ".writing-";
const SEQUENCE_DIGITS: usize = 16;

/// A set's name: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first one no dot. Case matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName(String);

/// A text is no name of a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a target set's name has 1 to 128 characters of A-Z a-z 0-9 . _ - and does not start with a dot")]
pub struct SetNameError;

impl SetName {
    /// `name`, checked.
    ///
    /// # Errors
    ///
    /// When it is not a name; the message says what one is.
    pub fn parse(name: &str) -> Result<Self, SetNameError> {
        let fits = (1..=NAME_CHARS_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(Self(name.to_owned())) } else { Err(SetNameError) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a file of the folder is, by its name. Whatever is neither is not ours, and left alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileName {
    /// A set, complete: `<name>.<sequence>.safetensors`.
    Set(SetName, u64),
    /// A set that is being written, or whose writer was ended: `.writing-<number>`.
    Temporary,
}

impl FileName {
    pub(super) fn parse(file: &str) -> Option<Self> {
        if let Some(number) = file.strip_prefix(TEMPORARY) {
            return sequence(number).map(|_| Self::Temporary);
        }
        let (name, number) = file.strip_suffix(EXTENSION)?.rsplit_once('.')?;
        Some(Self::Set(SetName::parse(name).ok()?, sequence(number)?))
    }
}

/// The name of a set's file. The sequence number makes it a new one each time a set is replaced, on file systems that
/// take `A` and `a` for the same as well.
pub(super) fn set_file(name: &str, sequence: u64) -> String {
    format!("{name}.{sequence:016x}{EXTENSION}")
}

pub(super) fn temporary_file(number: u64) -> String {
    format!("{TEMPORARY}{number:016x}")
}

/// Exactly as this module writes it.
fn sequence(digits: &str) -> Option<u64> {
    let fits = digits.len() == SEQUENCE_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if fits { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        let longest = "x".repeat(128);
        for good in ["a", "Z", "0", "_", "-", "a.b", "a..b", "a.", "nist-800-53r5", "NIST_CSF.2.0", &longest] {
            assert_eq!(SetName::parse(good).unwrap().as_str(), good);
        }
        let longer = "x".repeat(129);
        for bad in ["", ".", "..", ".a", "a/b", "../a", "a\\b", "a b", "a\0", "a\n", "é", "a%2F", "a:b", &longer] {
            assert_eq!(SetName::parse(bad), Err(SetNameError), "{bad:?}");
        }
        assert_eq!(
            SetNameError.to_string(),
            "a target set's name has 1 to 128 characters of A-Z a-z 0-9 . _ - and does not start with a dot"
        );
    }

    #[test]
    fn files_that_are_not_ours() {
        for other in [
            "index.redb",
            "lock",
            "model.safetensors",
            "a.0000000000000001.safetensors.bak",
            "a.000000000000001.safetensors",
            "a.000000000000000A.safetensors",
            "a.+00000000000000f.safetensors",
            ".a.0000000000000001.safetensors",
            ".0000000000000001.safetensors",
            ".writing-",
            ".writing-1",
            "writing-0000000000000001",
        ] {
            assert_eq!(FileName::parse(other), None, "{other}");
        }
        assert_eq!(FileName::parse(&temporary_file(7)), Some(FileName::Temporary));
    }

    proptest! {
        #[test]
        fn a_file_tells_its_set(name in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", sequence in any::<u64>()) {
            let file = set_file(&name, sequence);
            prop_assert!(file.len() < 255);
            prop_assert_eq!(FileName::parse(&file), Some(FileName::Set(SetName::parse(&name).unwrap(), sequence)));
        }
    }
}
