//! API keys, as a list and as a file: what is understood is the same when written and read again, and nothing of what is
//! wrong is quoted, since it may be a key.

#![forbid(unsafe_code)]
#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus::api_keys::{ApiKey, is_name, parse_file, parse_list};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (separator, parse) in [(",", parse_list as fn(&str) -> Result<Vec<ApiKey>, String>), ("\n", parse_file)] {
        match parse(text) {
            Ok(keys) => {
                assert!(!keys.is_empty() && keys.iter().all(|key| is_name(&key.name)));
                let written = keys.iter().map(ApiKey::to_string).collect::<Vec<_>>().join(separator);
                assert_eq!(parse(&written), Ok(keys));
            }
            Err(error) => {
                // What an error says but for the number of a line, which may be in the text by chance.
                let fixed = error.trim_start_matches("line ").trim_start_matches(|c: char| c.is_ascii_digit());
                let fixed = fixed.trim_start_matches(": ").trim_start_matches("expected ");
                assert!(fixed.starts_with("name:digest, with ") || fixed == "at least one key", "{error}");
                assert!(error.len() < 250, "{error}");
            }
        }
    }
});
