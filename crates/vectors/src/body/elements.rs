//! Where a vector's text ends: found by its last byte alone, however the bytes come.
//!
//! In a list of numbers the first `]` is the end, in a base64 string the first quote that is not escaped. Where that is
//! wrong (`[1, [2], "]"]`), what comes before the supposed end is no vector, which whoever parses it will say; errors
//! after it are of no interest then.

use memchr::{memchr, memchr2};

/// The longest text of one vector: 256 bytes for each of the components that it may have at most. A text without an end
/// would fill the memory otherwise.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 20;

/// How far an element's bytes have been looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ElementEnd {
    scanned: usize,
    /// The first byte that was not looked at follows a backslash.
    escaped: bool,
}

impl ElementEnd {
    /// Whether nothing of the element was looked at.
    pub(super) fn is_fresh(&self) -> bool {
        self.scanned == 0
    }

    /// The position after the element that `element` begins with, if it ends in there. `element` holds what earlier calls
    /// saw of it, and more.
    pub(super) fn find(&mut self, element: &[u8]) -> Option<usize> {
        let is_string = *element.first()? == b'"';
        // The quote that opens a string does not close it.
        let from = self.scanned.max(1);
        let found = self.find_after(&element[from..], is_string).map(|end| from + end);
        self.scanned = element.len();
        found
    }

    /// The same, in the bytes that follow those seen before; the position is one in `more`.
    pub(super) fn find_more(&mut self, more: &[u8], is_string: bool) -> Option<usize> {
        let found = self.find_after(more, is_string);
        self.scanned += more.len();
        found
    }

    fn find_after(&mut self, bytes: &[u8], is_string: bool) -> Option<usize> {
        if !is_string {
            return memchr(b']', bytes).map(|at| at + 1);
        }
        if bytes.is_empty() {
            return None;
        }
        let mut at = usize::from(std::mem::take(&mut self.escaped));
        loop {
            let found = at + memchr2(b'"', b'\\', bytes.get(at..)?)?;
            if bytes[found] == b'"' {
                return Some(found + 1);
            }
            at = found + 2;
            if at > bytes.len() {
                self.escaped = true;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        for (text, end) in [
            (r#"[1,2],[3]"#, Some(5)),
            (r#""ab","c""#, Some(4)),
            (r#""a\"b\\",1"#, Some(8)),
            (r#""a\\\"","#, Some(7)),
            ("[1,2", None),
            (r#""ab\""#, None),
            (r#""ab\"#, None),
        ] {
            let bytes = text.as_bytes();
            assert_eq!(ElementEnd::default().find(bytes), end, "{text}");
            for split in 1..=bytes.len() {
                let mut grown = ElementEnd::default();
                let first = grown.find(&bytes[..split]);
                let second = first.or_else(|| grown.find(bytes));
                assert_eq!(second, end, "{text} at {split}");
                let mut fed = ElementEnd::default();
                let first = fed.find(&bytes[..split]);
                let is_string = bytes[0] == b'"';
                let second = first.or_else(|| fed.find_more(&bytes[split..], is_string).map(|at| split + at));
                assert_eq!(second, end, "{text} at {split}");
            }
        }
    }
}
