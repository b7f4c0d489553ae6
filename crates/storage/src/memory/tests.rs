//! The memory tier: what it answers, and that its bounds hold whatever is done to it.

use super::*;
use crate::testing::{awkward, bits, key, vector};
use bytes::Bytes;
use futures::executor::block_on;
use proptest::prelude::*;
use std::sync::atomic::AtomicUsize;

#[test]
fn a_hit_is_what_was_put() {
    let cache = MemoryCache::new(1 << 20);
    cache.put(vec![(key(1), awkward())]);
    let found = block_on(cache.get(&[key(2), key(1)]));
    assert_eq!(found[0], None);
    assert_eq!(bits(found[1].as_ref().unwrap()), bits(&awkward()));
    assert_eq!(cache.stats(), CacheStats { entries: Some(1), hits: 1, misses: 1, ..CacheStats::default() });
}

#[test]
fn the_bound_holds() {
    let one = cost(&[0.0; 100]);
    let cache = MemoryCache::new(10 * one + one / 2);
    for i in 0..1000 {
        cache.put_one(key(i), vector(&[1.0; 100]));
        assert!(cache.bytes() <= 10 * one);
        assert_eq!(cache.bytes(), cache.stats().entries.unwrap() as usize * one);
    }
    assert_eq!(cache.stats().entries, Some(10));
    // Replacing counts the difference.
    cache.put_one(key(999), vector(&[1.0; 50]));
    assert_eq!(cache.bytes(), 10 * one - 200);
}

#[test]
fn the_least_recently_used_goes_first() {
    let cache = MemoryCache::new(3 * cost(&[0.0]));
    for i in 0..3 {
        cache.put_one(key(i), vector(&[i as f32]));
    }
    assert!(cache.get_one(&key(0)).is_some());
    cache.put_one(key(3), vector(&[3.0]));
    let held: Vec<bool> = (0..4).map(|i| cache.get_one(&key(i)).is_some()).collect();
    assert_eq!(held, [true, false, true, true]);
}

#[test]
fn what_may_not_be_kept_is_counted() {
    let cache = MemoryCache::new(1000);
    cache.put_one(key(1), vector(&[1.0, f32::NAN]));
    cache.put_one(key(2), vector(&[f32::NEG_INFINITY]));
    cache.put_one(key(3), vector(&[1.0; 1000]));
    assert_eq!((cache.stats().entries, cache.stats().dropped, cache.bytes()), (Some(0), 3, 0));
    let nothing = MemoryCache::new(0);
    nothing.put_one(key(1), vector(&[]));
    assert_eq!(nothing.stats().entries, Some(0));
}

#[test]
fn used_from_many_threads() {
    let cache = MemoryCache::new(50 * cost(&[0.0]));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for i in 0..5000 {
                    let i = (i * 7 + thread) % 100;
                    match cache.get_one(&key(i)) {
                        Some(found) => assert_eq!(&*found, [i as f32]),
                        None => assert_eq!(&*cache.put_one(key(i), vector(&[i as f32])), [i as f32]),
                    }
                }
            });
        }
    });
    assert!(cache.bytes() <= 50 * cost(&[0.0]));
    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, 20_000);
}

/// What a vector is rendered to in these tests: `bytes` bytes that tell the vector.
fn render(floats: &[f32], bytes: usize) -> Bytes {
    vec![floats.first().map_or(0, |x| *x as u8); bytes].into()
}

/// The counters are what the entries add up to, and within the bounds.
fn check(cache: &MemoryCache) {
    let held = cache.shared.lock();
    let (mut bytes, mut rendered_bytes, mut rendered) = (0, 0, 0);
    for (key, entry) in &held.entries {
        bytes += cost(&entry.vector) + entry.rendered_cost;
        rendered_bytes += entry.rendered_cost;
        rendered += usize::from(entry.rendered_cost > 0);
        assert_eq!(held.rendered.contains(key), entry.rendered_cost > 0);
    }
    assert_eq!((held.bytes, held.rendered_bytes, held.rendered.len()), (bytes, rendered_bytes, rendered));
    assert!(bytes <= cache.shared.bytes_max);
    assert!(rendered_bytes <= cache.shared.bytes_max / RENDERED_PART);
}

#[test]
fn a_vector_is_rendered_once_for_all_who_read_it() {
    let cache = MemoryCache::new(1 << 20);
    let count = AtomicUsize::new(0);
    let read = |held: &Vector| {
        held.rendered(0, |floats| {
            count.fetch_add(1, Ordering::Relaxed);
            render(floats, 50)
        })
    };
    let put = cache.put_one(key(1), vector(&[7.0, 8.0]));
    assert_eq!(cache.rendered_bytes(), 0, "nothing is rendered before somebody asks");
    let first = read(&cache.get_one(&key(1)).unwrap());
    assert_eq!(first, [7; 50][..]);
    let second = read(&cache.get_one(&key(1)).unwrap());
    assert_eq!(second.as_ptr(), first.as_ptr(), "the same bytes, not equal ones");
    assert_eq!(read(&put).as_ptr(), first.as_ptr());
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(cache.rendered_bytes(), 50 + RENDERED_OVERHEAD_BYTES);
    check(&cache);
}

#[test]
fn each_form_has_bytes_of_its_own() {
    let cache = MemoryCache::new(1 << 20);
    let held = cache.put_one(key(1), vector(&[1.0]));
    for _ in 0..2 {
        let lengths = [0, 1].map(|form| held.rendered(form, |floats| render(floats, 50 + form)).len());
        assert_eq!(lengths, [50, 51]);
    }
    assert_eq!(cache.rendered_bytes(), 101 + 2 * RENDERED_OVERHEAD_BYTES);
    // One that there is no place for is made each time.
    assert_eq!(held.rendered(crate::FORMS, |_| "one".into()), "one");
    assert_eq!(held.rendered(crate::FORMS, |_| "other".into()), "other");
    check(&cache);
}

#[test]
fn what_was_rendered_leaves_with_its_entry() {
    let cache = MemoryCache::new(1 << 20);
    let old = cache.put_one(key(1), vector(&[1.0]));
    old.rendered(0, |floats| render(floats, 50));
    old.rendered(1, |floats| render(floats, 50));
    // Another vector under the same key has bytes of its own.
    let other = cache.put_one(key(1), vector(&[2.0]));
    assert_eq!((cache.bytes(), cache.rendered_bytes()), (cost(&[2.0]), 0));
    assert_eq!(other.rendered(0, |floats| render(floats, 50)), [2; 50][..]);
    check(&cache);
}

#[test]
fn what_is_rendered_too_late_is_nobodys() {
    let cache = MemoryCache::new(cost(&[0.0]));
    let old = cache.put_one(key(1), vector(&[1.0]));
    cache.put_one(key(2), vector(&[2.0]));
    assert_eq!(old.rendered(0, |floats| render(floats, 50)), [1; 50][..]);
    assert_eq!((cache.bytes(), cache.rendered_bytes()), (cost(&[2.0]), 0));
    // Nor does a cache that is gone mind.
    let last = cache.get_one(&key(2)).unwrap();
    drop(cache);
    assert_eq!(last.rendered(0, |floats| render(floats, 50)), [2; 50][..]);
}

#[test]
fn rendered_bytes_go_before_vectors_do() {
    let rendered = 1000 + RENDERED_OVERHEAD_BYTES;
    let cache = MemoryCache::new(4 * rendered);
    for i in 0..3 {
        cache.put_one(key(i), vector(&[i as f32])).rendered(0, |floats| render(floats, 1000));
    }
    // Two may be rendered, and all three stay.
    assert_eq!((cache.stats().entries, cache.rendered_bytes()), (Some(3), 2 * rendered));
    let held = cache.shared.lock();
    let rendered: Vec<bool> = (0..3).map(|i| held.entries.peek(&key(i)).unwrap().rendered_cost > 0).collect();
    drop(held);
    assert_eq!(rendered, [false, true, true], "the least recently used went first");
    check(&cache);
}

#[test]
fn what_is_larger_than_its_part_is_not_kept() {
    let cache = MemoryCache::new(1000);
    let held = cache.put_one(key(1), vector(&[1.0]));
    assert_eq!(held.rendered(0, |floats| render(floats, 2000)).len(), 2000);
    assert_eq!((cache.bytes(), cache.rendered_bytes()), (cost(&[1.0]), 0));
    check(&cache);
}

#[test]
fn a_vector_in_two_caches_is_counted_by_each() {
    let (one, other) = (MemoryCache::new(1 << 20), MemoryCache::new(1 << 20));
    let in_one = one.put_one(key(1), vector(&[3.0]));
    let in_other = other.put_one(key(1), in_one.clone());
    in_one.rendered(0, |floats| render(floats, 50));
    assert_eq!((one.rendered_bytes(), other.rendered_bytes()), (50 + RENDERED_OVERHEAD_BYTES, 0));
    in_other.rendered(0, |floats| render(floats, 50));
    check(&one);
    check(&other);
    assert_eq!(other.rendered_bytes(), 50 + RENDERED_OVERHEAD_BYTES);
}

proptest! {
    #[test]
    fn the_bounds_hold_whatever_comes(
        bytes_max in 0usize..20_000,
        steps in prop::collection::vec((0u8..5, 0u64..12, 0usize..600), 1..200),
    ) {
        let cache = MemoryCache::new(bytes_max);
        // Vectors that somebody still holds, whatever became of their entries.
        let mut kept = Vec::new();
        for (step, i, size) in steps {
            match step {
                0 => kept.push(cache.put_one(key(i), vector(&vec![i as f32; 1 + size / 4]))),
                1 => kept.extend(cache.get_one(&key(i))),
                _ => {
                    let Some(held) = kept.get(i as usize * kept.len() / 12) else { continue };
                    let first = held[0] as u8;
                    // Two forms that are kept, and one that is not.
                    let bytes = held.rendered(step as usize - 2, |floats| render(floats, 10 * size));
                    prop_assert!(bytes.iter().all(|b| *b == first));
                }
            }
            check(&cache);
        }
    }
}

#[test]
fn rendered_by_many_threads() {
    // Room for about a third of the vectors, and for fewer of their bytes.
    let cache = MemoryCache::new(30 * (cost(&[0.0]) + 500));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                for step in 0..5000 {
                    let i = (step * 7 + thread * 3) % 100;
                    let held = cache.get_one(&key(i)).unwrap_or_else(|| cache.put_one(key(i), vector(&[i as f32])));
                    if step % 3 > 0 {
                        assert_eq!(held.rendered(0, |floats| render(floats, 500)), [i as u8; 500][..]);
                    }
                    if step % 500 == 0 {
                        check(cache);
                    }
                }
            });
        }
    });
    check(&cache);
    assert!(cache.rendered_bytes() > 0);
}

#[test]
fn a_crowd_waits_for_the_one_who_renders() {
    let cache = MemoryCache::new(1 << 20);
    cache.put_one(key(1), vector(&[5.0]));
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                cache.get_one(&key(1)).unwrap().rendered(0, |floats| {
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    render(floats, 50)
                })
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 1);
    check(&cache);
}
