//! Text to token ids, as the reference tokenizers do it, truncated to the model's window.
//!
//! Special tokens come from the post-processor in `tokenizer.json` and from nowhere else: adding an end-of-text token by
//! hand as well, or losing it in truncation, changes every vector a little and is seen by nobody.

use crate::{LoadError, ModelFiles, config::Config};
use std::panic::{AssertUnwindSafe, catch_unwind};
use thiserror::Error;
use tokenizers::{
    Model as _, ModelWrapper, NormalizerWrapper, PostProcessor, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    TruncationParams, TruncationStrategy, pre_tokenizers::byte_level::ByteLevel, truncate_encodings,
};

const FILE: &str = "tokenizer.json";
/// What a tokenizer is tried on.
const A_TEXT: &str = "Access keys are rotated.";

/// A tokenizer fitted to one model.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    window_tokens: usize,
    table_rows: usize,
    /// Bytes beyond which no text reaches into the window.
    text_bytes_max: usize,
}

/// Why a text has no token ids.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The text spells out a special token that the model has no embedding for.
    #[error("the text holds the special token {token:?}, for which this model has no embedding")]
    UnknownSpecial {
        /// The token as it stands in the text.
        token: String,
    },
    /// Nothing of the text is left: all of it is normalized away, and no special token is added.
    #[error("the text has no tokens")]
    NoTokens,
    /// The tokenizer itself failed.
    #[error("tokenization failed: {0}")]
    Failed(String),
}

impl TextTokenizer {
    /// Loads `tokenizer.json` and fits it to an embedding table of `table_rows` rows. Encodings are truncated to the
    /// smallest of `model_tokens_max` (the model's positions), the tokenizer's own limit, and `window_limit` when it is
    /// not 0. Padding that the file asks for is switched off: batches are packed.
    pub fn load(
        files: &ModelFiles,
        table_rows: usize,
        model_tokens_max: usize,
        window_limit: usize,
    ) -> Result<Self, LoadError> {
        let bytes = files.require(FILE, "tokenizers are read from tokenizer.json")?;
        let malformed = |detail: String| LoadError::malformed(files.describe(FILE), detail);
        let mut tokenizer =
            caught(|| Tokenizer::from_bytes(bytes)).map_err(malformed)?.map_err(|e| malformed(e.to_string()))?;

        if let ModelWrapper::BPE(model) = tokenizer.get_model()
            && let Some(dropout) = model.dropout.filter(|&share| share > 0.0)
        {
            // Made for training: a text would have another vector each time, and a cached one for ever.
            return Err(malformed(format!("model.dropout is {dropout}; supported: none")));
        }

        let mut window_tokens = model_tokens_max;
        if let Some(config) = Config::read_optional(files, "tokenizer_config.json")? {
            // Tokenizers without a limit write 1e30 here.
            if let Some(limit) = config.value("model_max_length").and_then(|v| v.as_u64()) {
                window_tokens = window_tokens.min(usize::try_from(limit).unwrap_or(usize::MAX));
            }
        }
        if window_limit > 0 {
            window_tokens = window_tokens.min(window_limit);
        }
        tokenizer.with_padding(None);
        // Truncation is done here, on whole encodings. The library's own stops tokenizing early (as of 0.23.2), and then
        // sees two long texts of a pair as about equal: which of them is cut by one token more is left to chance.
        tokenizer.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
        let specials = specials(&tokenizer, false);
        if window_tokens <= specials {
            return Err(malformed(format!(
                "a window of {window_tokens} tokens leaves no room beside {specials} special tokens"
            )));
        }

        // The vocabulary proper must fit the table. Added tokens beyond it are met in published models (the table is cut
        // to the tokens that were trained) and are refused when a text holds one.
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().clone();
        let beyond = tokenizer
            .get_vocab(false)
            .into_iter()
            .filter(|(_, id)| *id as usize >= table_rows && !added.contains_key(id))
            .max_by_key(|(_, id)| *id);
        if let Some((token, id)) = beyond {
            return Err(malformed(format!(
                "token {token:?} has id {id}, but the model's embedding table has {table_rows} rows: \
                 this tokenizer belongs to another model"
            )));
        }
        let text_bytes_max = text_bytes_max(&tokenizer, window_tokens);
        let this = Self { tokenizer, window_tokens, table_rows, text_bytes_max };
        this.try_on(None).map_err(malformed)?;
        Ok(this)
    }

    /// Tokens beyond which a text or pair is truncated.
    pub fn window_tokens(&self) -> usize {
        self.window_tokens
    }

    /// Fails unless every encoding of a text ends in the one token that the post-processor appends, as pooling by the
    /// last token needs. Returns that token's id.
    pub fn require_end_token(&self, files: &ModelFiles) -> Result<u32, LoadError> {
        let malformed = |detail: &str| LoadError::malformed(files.describe(FILE), detail);
        // A narrow window, so that truncation is seen as well.
        let narrow = self.window_tokens.min(8);
        let encode = |text: &str| match self.encode_texts(text, None, narrow) {
            Err(EncodeError::NoTokens) => Ok(Vec::new()),
            other => other.map_err(|e| malformed(&e.to_string())),
        };
        let Some(&end) = encode("")?.last() else {
            return Err(malformed(
                "the post-processor appends no end-of-text token, and this model is pooled by its last token",
            ));
        };
        let long = "access control ".repeat(narrow);
        for text in [A_TEXT, " ", &long] {
            let ids = encode(text)?;
            if ids.last() != Some(&end) || ids.iter().filter(|id| **id == end).count() != 1 {
                return Err(malformed(&format!("encodings do not end in exactly one end-of-text token (id {end})")));
            }
        }
        Ok(end)
    }

    /// Fails unless the window has room for both texts of a pair.
    pub fn require_room_for_pairs(&self, files: &ModelFiles) -> Result<(), LoadError> {
        let specials = specials(&self.tokenizer, true);
        let malformed = |detail: String| LoadError::malformed(files.describe(FILE), detail);
        if self.window_tokens < specials + 2 {
            return Err(malformed(format!(
                "a window of {} tokens has no room for two texts beside {specials} special tokens",
                self.window_tokens
            )));
        }
        self.try_on(Some(A_TEXT)).map_err(malformed)
    }

    /// A file may be read and still hold what fails with every text, or with every long one: tried whole and cut short.
    fn try_on(&self, second: Option<&str>) -> Result<(), String> {
        let narrow = self.window_tokens.min(specials(&self.tokenizer, second.is_some()) + 2);
        for window in [self.window_tokens, narrow] {
            if let Err(EncodeError::Failed(detail)) = self.encode_texts(A_TEXT, second, window) {
                return Err(detail);
            }
        }
        Ok(())
    }

    /// Token ids of one text, special tokens included.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode_texts(text, None, self.window_tokens)
    }

    /// Token ids of a pair (`[CLS] first [SEP] second [SEP]`), the longer of the two truncated first.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode_texts(first, Some(second), self.window_tokens)
    }

    fn encode_texts(&self, first: &str, second: Option<&str>, window: usize) -> Result<Vec<u32>, EncodeError> {
        caught(|| self.try_encode(first, second, window)).map_err(EncodeError::Failed)?
    }

    fn try_encode(&self, first: &str, second: Option<&str>, window: usize) -> Result<Vec<u32>, EncodeError> {
        let failed = |e: tokenizers::Error| EncodeError::Failed(e.to_string());
        // The fast form leaves out character offsets, which nobody reads.
        let encode = |text: &str| {
            let text = &text[..text.floor_char_boundary(self.text_bytes_max)];
            self.tokenizer.encode_fast(text, false).map_err(failed)
        };
        let truncation = TruncationParams {
            max_length: window.saturating_sub(specials(&self.tokenizer, second.is_some())),
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let (mut first, mut second) =
            truncate_encodings(encode(first)?, second.map(encode).transpose()?, &truncation).map_err(failed)?;
        // What was cut off stays attached as further windows, and the post-processor would pair every window of one text
        // with every window of the other.
        first.take_overflowing();
        if let Some(second) = &mut second {
            second.take_overflowing();
        }
        let encoding = self.tokenizer.post_process(first, second, true).map_err(failed)?;
        let ids = encoding.get_ids();
        if ids.is_empty() {
            return Err(EncodeError::NoTokens);
        }
        // A post-processor may repeat a text; positions beyond the window are beyond the model's.
        if ids.len() > window {
            let count = ids.len();
            return Err(EncodeError::Failed(format!(
                "the post-processor makes {count} tokens in a window of {window}"
            )));
        }
        match ids.iter().find(|id| **id as usize >= self.table_rows) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(EncodeError::UnknownSpecial { token: self.tokenizer.id_to_token(*id).unwrap_or_default() }),
        }
    }
}

/// What `work` gives, or, where the library panics over a file that makes no sense, what it says. It keeps nothing
/// half-changed: all that encoding changes is a cache, an entry at a time.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the tokenizer library panicked: {}", message.unwrap_or("the log has the place"))
    })
}

/// How much of a text can matter: more than as many of the longest tokens as the window holds. Megabytes of text in a
/// window of kilobytes would cost seconds and gigabytes to tokenize, and all of it would be cut off.
///
/// Composition (NFC) and lower case make a text shorter, threefold each at most. What other normalizers do to a length is
/// not known here, and a tokenizer that is not of bytes may make one unknown token of a word of any length, or drop white
/// space: with one of them, texts are tokenized whole.
fn text_bytes_max(tokenizer: &Tokenizer, window_tokens: usize) -> usize {
    fn is_known(normalizer: &NormalizerWrapper) -> bool {
        match normalizer {
            NormalizerWrapper::NFC(_) | NormalizerWrapper::Lowercase(_) => true,
            NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().all(is_known),
            _ => false,
        }
    }
    if !tokenizer.get_normalizer().is_none_or(is_known) || !keeps_every_byte(tokenizer) {
        return usize::MAX;
    }
    let longest = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(usize::MAX);
    window_tokens.saturating_add(1).saturating_mul(longest).saturating_mul(9)
}

/// Whether each byte of a text (added tokens aside, around which white space may go) is a part of a token that spells it.
fn keeps_every_byte(tokenizer: &Tokenizer) -> bool {
    fn keeps(pre_tokenizer: &PreTokenizerWrapper) -> bool {
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => true,
            PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
            PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().all(keeps),
            _ => false,
        }
    }
    fn is_of_bytes(pre_tokenizer: &PreTokenizerWrapper) -> bool {
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(_) => true,
            PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().any(is_of_bytes),
            _ => false,
        }
    }
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return false };
    // What has neither may still be of bytes, but it is not told by looking for them.
    let plain = model.continuing_subword_prefix.is_none() && model.end_of_word_suffix.is_none();
    plain
        && tokenizer.get_pre_tokenizer().is_some_and(|it| keeps(it) && is_of_bytes(it))
        && ByteLevel::alphabet().into_iter().all(|byte| model.token_to_id(&byte.to_string()).is_some())
}

/// How many special tokens the post-processor adds to one text, or to a pair.
fn specials(tokenizer: &Tokenizer, pair: bool) -> usize {
    tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
}
