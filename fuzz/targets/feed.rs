//! A body fed in pieces, as far as the targets share it.

use bytes::Bytes;
use nexus_vectors::{Block, BodyError, BodyParser, Form, Gathered, Limits, Purpose, Threads};

/// Small enough to be met by small inputs.
const LIMITS: Limits = Limits {
    rows_max: 64,
    dim_max: 48,
    components_max: 400,
    sources_max: 4,
    source_components_max: 100,
    candidates_max: 100,
};

/// Everything that can be told of what came of the body, fed in pieces of the lengths that `lengths` gives in turn.
pub fn outcome(form: Form, purpose: Purpose, body: &[u8], lengths: &[u8]) -> Result<String, String> {
    run(form, purpose, body, lengths).map_err(|error| {
        // Which of several wrong tensors the library names, and for what, is up to its hash table.
        let message = error.to_string();
        let message =
            message.split_once("not a safetensors file: invalid").map_or(message.as_str(), |(start, _)| start);
        format!("{message} {:?}", error.kind)
    })
}

fn run(form: Form, purpose: Purpose, body: &[u8], lengths: &[u8]) -> Result<String, BodyError> {
    let mut parser = BodyParser::new(form, purpose, LIMITS);
    let (mut gathered, mut blocks) = (Gathered::default(), Vec::new());
    let mut rest = body;
    let mut lengths = lengths.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(rest.len(), |&length| usize::from(length) + 1).min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        let fed = parser.feed(Bytes::copy_from_slice(piece), &mut blocks);
        take(&mut gathered, &mut blocks)?;
        fed?;
    }
    let head = parser.finish(&mut blocks);
    take(&mut gathered, &mut blocks)?;
    let head = head?;
    if purpose == Purpose::Retrieve && head.targets.is_none() {
        let k = head.top_k.unwrap_or(50);
        return Ok(format!("{:?} {:?}", gathered.rank(&head, k, &LIMITS, Threads::Caller)?, head.ids));
    }
    let mut bits = Vec::new();
    for kept in gathered.into_kept() {
        bits.extend_from_slice(kept.data.as_bytes());
    }
    Ok(format!("{:?} {:?} {bits:?}", head.ids, head.dim))
}

fn take(gathered: &mut Gathered, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
    blocks.drain(..).try_for_each(|block| {
        gathered.take(block.run()?);
        Ok(())
    })
}

/// The input as lengths of pieces and a body; whatever the pieces are, the outcome has to be that of the whole.
#[allow(dead_code, reason = "one of the targets has its own check")]
pub fn check(form: Form, data: &[u8]) -> Option<(&[u8], bool)> {
    let (&count, data) = data.split_first()?;
    let (lengths, body) = data.split_at_checked(usize::from(count % 8))?;
    let mut accepted = false;
    for purpose in [Purpose::Retrieve, Purpose::Keep] {
        let whole = outcome(form, purpose, body, &[]);
        let pieces = outcome(form, purpose, body, lengths);
        assert_eq!(whole, pieces, "{purpose:?} in pieces of {lengths:?}");
        accepted |= whole.is_ok();
    }
    Some((body, accepted))
}
