//! `tokenizer.json` and a text: what is loaded gives ids that fit the window and the table, the same ones again, and those
//! of the library over the whole text.

#![forbid(unsafe_code)]
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;
use nexus_models::{EncodeError, ModelFiles, TextTokenizer};
use tokenizers::{PostProcessor as _, Tokenizer, TruncationDirection};

const TABLE_ROWS: usize = 300;

/// The library panics over some files, which is caught where it is called; every other panic is a finding.
fn only_the_library_may_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/tokenizers-")) {
            hook(panic);
        }
    }));
}

fuzz_target!(init: only_the_library_may_panic(), |data: &[u8]| {
    let Some((&window, data)) = data.split_first() else { return };
    let Some([text, json]) = folder::parts(data) else { return };
    folder::write("tokenizer.json", json);
    let files = ModelFiles::open(folder::folder()).expect("the files are there");
    let window = usize::from(window);
    let load = || TextTokenizer::load(&files, TABLE_ROWS, 64, window);
    let Ok(tokenizer) = load() else { return };
    let tokens_max = tokenizer.window_tokens();
    assert!(tokens_max <= 64 && (window == 0 || tokens_max <= window));
    let text = String::from_utf8_lossy(text);
    let again = load().expect("it was loaded before");
    for text in [text.as_ref(), &text.repeat(40), ""] {
        let ids = tokenizer.encode(text);
        check(&ids, tokens_max);
        assert_eq!(ids, again.encode(text));
        if let Ok(ids) = ids {
            assert_eq!(ids, whole(json, text, tokens_max));
        }
        if tokenizer.require_room_for_pairs(&files).is_ok() {
            check(&tokenizer.encode_pair(text, "second text"), tokens_max);
            check(&tokenizer.encode_pair("first text", text), tokens_max);
        }
    }
    if let Ok(end) = tokenizer.require_end_token(&files) {
        assert!((end as usize) < TABLE_ROWS);
    }
});

/// What the library makes of the whole text, truncated afterwards.
fn whole(json: &[u8], text: &str, tokens_max: usize) -> Vec<u32> {
    let mut tokenizer = Tokenizer::from_bytes(json).expect("it was loaded before");
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).expect("none");
    let special_tokens = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    let mut encoding = tokenizer.encode_fast(text, false).expect("it was encoded before");
    encoding.truncate(tokens_max - special_tokens, 0, TruncationDirection::Right);
    encoding.take_overflowing();
    tokenizer.post_process(encoding, None, true).expect("it was processed before").get_ids().to_vec()
}

fn check(ids: &Result<Vec<u32>, EncodeError>, tokens_max: usize) {
    if let Ok(ids) = ids {
        assert!((1..=tokens_max).contains(&ids.len()), "{ids:?} in a window of {tokens_max}");
        assert!(ids.iter().all(|id| (*id as usize) < TABLE_ROWS), "{ids:?}");
    }
}
