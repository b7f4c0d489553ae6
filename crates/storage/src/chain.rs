//! Errors keep their causes; people read them in one line.

use std::error::Error;

/// An error with its causes, in one line.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        // Some errors already tell their cause.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

/// What an error and each of its causes say.
pub(crate) fn causes<'a>(error: &'a dyn Error) -> impl Iterator<Item = String> + 'a {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source().map(|source| source as &dyn Error);
        Some(error.to_string())
    })
}
