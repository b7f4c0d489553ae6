//! Bodies fed whole and in pieces: however the bytes come, what comes of them is the same.

#![allow(dead_code, reason = "each test program uses its part")]

use bytes::Bytes;
use nexus_vectors::{BodyError, BodyParser, Form, Gathered, Head, Kept, Limits, Purpose, Scored, Threads};

/// What came of a body.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) head: Head,
    /// For [`Purpose::Keep`].
    pub(crate) kept: Vec<Kept>,
    /// For [`Purpose::Retrieve`] without the name of a set.
    pub(crate) ranked: Vec<Vec<Scored>>,
}

impl Parsed {
    /// Components of all rows.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let mut floats = Vec::new();
        self.kept.iter().for_each(|kept| kept.data.dtype().widen(kept.data.as_bytes(), &mut floats));
        floats
    }

    pub(crate) fn ids(&self) -> Option<Vec<String>> {
        self.head.ids.as_ref().map(|ids| ids.iter().map(str::to_owned).collect())
    }

    /// Everything that can be compared.
    pub(crate) fn summary(&self) -> String {
        let Head { many, targets, top_k, dim, sources, .. } = &self.head;
        let sources = sources.as_ref().map(|sources| (sources.len(), sources.dim()));
        let bits: Vec<u32> = self.floats().iter().map(|x| x.to_bits()).collect();
        format!("{:?}", (many, targets, top_k, dim, sources, self.ids(), bits, &self.ranked))
    }
}

/// Feeds `pieces`, runs blocks in order, and ranks.
pub(crate) fn feed<'a>(
    form: Form,
    purpose: Purpose,
    limits: &Limits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Parsed, BodyError> {
    let mut parser = BodyParser::new(form, purpose, *limits);
    let mut gathered = Gathered::default();
    let mut blocks = Vec::new();
    let mut run = |blocks: &mut Vec<_>| -> Result<(), BodyError> {
        blocks.drain(..).try_for_each(|block: nexus_vectors::Block| {
            gathered.take(block.run()?);
            Ok(())
        })
    };
    for piece in pieces {
        let fed = parser.feed(Bytes::copy_from_slice(piece), &mut blocks);
        run(&mut blocks)?;
        fed?;
    }
    let head = parser.finish(&mut blocks);
    run(&mut blocks)?;
    let head = head?;
    if purpose == Purpose::Retrieve && head.targets.is_none() {
        let ranked = gathered.rank(&head, head.top_k.unwrap_or(50), limits, Threads::Pool)?;
        return Ok(Parsed { head, kept: Vec::new(), ranked });
    }
    let kept = gathered.into_kept();
    let rows = kept.iter().map(|kept| kept.data.len()).sum::<usize>().checked_div(head.dim.unwrap_or(0)).unwrap_or(0);
    if purpose == Purpose::Keep {
        nexus_vectors::check_ids(head.ids.as_ref(), rows)?;
    }
    Ok(Parsed { head, kept, ranked: Vec::new() })
}

/// The body whole, byte by byte, and cut at many places; all alike.
#[track_caller]
pub(crate) fn parse_as(form: Form, purpose: Purpose, limits: &Limits, body: &[u8]) -> Result<Parsed, BodyError> {
    let summary = |result: &Result<Parsed, BodyError>| match result {
        Ok(parsed) => parsed.summary(),
        Err(error) => format!("{error} {:?}", error.kind),
    };
    let whole = feed(form, purpose, limits, [body]);
    let expected = summary(&whole);
    let check = |cut: Result<Parsed, BodyError>, how: &str| {
        assert_eq!(summary(&cut), expected, "{how}: {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
    };
    if body.len() <= 4096 {
        check(feed(form, purpose, limits, body.chunks(1)), "byte by byte");
        for at in (0..body.len()).step_by(1 + body.len() / 64) {
            check(feed(form, purpose, limits, [&body[..at], &body[at..]]), &format!("cut at {at}"));
        }
    }
    for size in [7, 1000, 100_000] {
        if size < body.len() && body.len() / size < 10_000 {
            check(feed(form, purpose, limits, body.chunks(size)), &format!("in pieces of {size}"));
        }
    }
    whole
}
