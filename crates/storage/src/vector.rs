//! A vector that is shared, and can carry the bytes that it is sent as.
//!
//! Writing 4096 floats as text takes longer than all else about a hit. A vector that a [`crate::MemoryCache`] handed out
//! has a place for those bytes: whoever needs them first fills it, and whoever gets the same vector later finds them.
//! The place belongs to the cache's entry; how many bytes are kept in all is the cache's business.
//!
//! Deliberately absent: what the bytes are. Whoever renders numbers the forms.

use crate::CacheKey;
use crate::memory::Shared;
use bytes::Bytes;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

/// Forms that a vector can be kept rendered in, numbered from 0.
pub const FORMS: usize = 2;

/// Floats, cheap to clone.
///
/// Two vectors are equal if their floats are.
#[derive(Clone)]
pub struct Vector {
    floats: Arc<[f32]>,
    /// `None` for a vector that is in no memory cache.
    place: Option<Arc<Place>>,
}

/// Where the rendered bytes of an entry of a memory cache lie.
pub(crate) struct Place {
    pub(crate) key: CacheKey,
    rendered: [OnceLock<Bytes>; FORMS],
    /// Weak, since the cache holds the entry, and the entry this.
    memory: Weak<Shared>,
}

impl Vector {
    /// The vector as the bytes of a form, made by `render` unless that was done before and kept.
    ///
    /// They are kept with the entry of the [`crate::MemoryCache`] that the vector was read from, as long as there is
    /// room. Calls at the same time wait for the first. A vector that was never in a memory cache is rendered at each
    /// call: it may be asked for once and never again. So is any vector in a form that is not below [`FORMS`]. A form's
    /// `render` has to be the same function in all of a process.
    pub fn rendered(&self, form: usize, render: impl FnOnce(&[f32]) -> Bytes) -> Bytes {
        let Some((place, slot)) = self.place.as_ref().and_then(|place| Some((place, place.rendered.get(form)?))) else {
            return render(&self.floats);
        };
        let mut new = false;
        let bytes = slot.get_or_init(|| {
            new = true;
            render(&self.floats)
        });
        if new && let Some(memory) = place.memory.upgrade() {
            memory.count_rendered(place, bytes.len());
        }
        bytes.clone()
    }

    /// The same floats with an empty place in `memory`'s entry of `key`.
    pub(crate) fn placed(&self, key: CacheKey, memory: &Arc<Shared>) -> Self {
        let place = Place { key, rendered: Default::default(), memory: Arc::downgrade(memory) };
        Self { floats: Arc::clone(&self.floats), place: Some(Arc::new(place)) }
    }

    /// Whether `place` is this vector's.
    pub(crate) fn has_place(&self, place: &Arc<Place>) -> bool {
        self.place.as_ref().is_some_and(|own| Arc::ptr_eq(own, place))
    }
}

impl Deref for Vector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl AsRef<[f32]> for Vector {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl PartialEq for Vector {
    fn eq(&self, other: &Self) -> bool {
        self.floats == other.floats
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.floats.fmt(f)
    }
}

impl<T: Into<Arc<[f32]>>> From<T> for Vector {
    fn from(floats: T) -> Self {
        Self { floats: floats.into(), place: None }
    }
}

impl FromIterator<f32> for Vector {
    fn from_iter<I: IntoIterator<Item = f32>>(floats: I) -> Self {
        floats.into_iter().collect::<Arc<[f32]>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_no_cache_is_rendered_each_time() {
        let vector = Vector::from(vec![1.0, 2.0]);
        let mut count = 0;
        for _ in 0..3 {
            let bytes = vector.clone().rendered(0, |floats| {
                count += 1;
                format!("{floats:?}").into()
            });
            assert_eq!(bytes, "[1.0, 2.0]");
        }
        assert_eq!(count, 3);
    }

    #[test]
    fn made_from_what_holds_floats() {
        let expected = Vector::from([1.0, 2.0]);
        assert_eq!(Vector::from(&[1.0, 2.0][..]), expected);
        assert_eq!(Vector::from(Arc::<[f32]>::from([1.0, 2.0])), expected);
        assert_eq!([1.0, 2.0].into_iter().collect::<Vector>(), expected);
        assert_eq!((format!("{expected:?}"), expected.len()), ("[1.0, 2.0]".to_owned(), 2));
    }
}
