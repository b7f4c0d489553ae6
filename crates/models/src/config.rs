//! Reading `config.json` key by key, in the forms that different versions of `transformers` write.
//!
//! Which keys mean what is each architecture's business; this module knows how to ask for one and how to complain.

use crate::{LoadError, ModelFiles};
use serde_json::{Map, Value};

/// A JSON object out of a model's files, with its file's name for messages.
#[derive(Clone, Debug)]
pub struct Config {
    file: String,
    keys: Map<String, Value>,
}

impl Config {
    /// Reads the file `name`, which has to be there.
    pub fn read(files: &ModelFiles, name: &str) -> Result<Self, LoadError> {
        let bytes = files.require(name, "a model folder holds config.json, tokenizer.json and model.safetensors")?;
        Self::parse(files.describe(name), bytes)
    }

    /// Reads the file `name` if it is there.
    pub fn read_optional(files: &ModelFiles, name: &str) -> Result<Option<Self>, LoadError> {
        files.get(name).map(|bytes| Self::parse(files.describe(name), bytes)).transpose()
    }

    fn parse(file: String, bytes: &[u8]) -> Result<Self, LoadError> {
        let value = serde_json::from_slice(bytes).map_err(|e| LoadError::malformed(&file, e))?;
        let Value::Object(keys) = value else {
            return Err(LoadError::malformed(file, "expected a JSON object"));
        };
        Ok(Self { file, keys })
    }

    /// The value of `key`, unless it is absent or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The object under `key`.
    pub fn section(&self, key: &str) -> Result<Option<Self>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Self { file: self.file.clone(), keys: keys.clone() })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// A size that has to be there: a whole number of at least 1.
    pub fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.size_or(key, None)
    }

    /// A size of at least 1, or `default`.
    pub fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize, LoadError> {
        // Ten million of anything in a transformer is a mistake; below it, products of two sizes can not overflow.
        const LIMIT: u64 = 10_000_000;
        match (self.value(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(LoadError::malformed(&self.file, format!("{key} is missing"))),
            (Some(value), _) => match value.as_u64() {
                Some(n) if (1..=LIMIT).contains(&n) => Ok(n as usize),
                _ => Err(self.wrong(key, value, "a whole number from 1 to 10000000")),
            },
        }
    }

    /// A positive number, or `default`.
    pub fn positive_or(&self, key: &str, default: Option<f32>) -> Result<f32, LoadError> {
        match (self.value(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(LoadError::malformed(&self.file, format!("{key} is missing"))),
            (Some(value), _) => match value.as_f64() {
                Some(x) if x > 0.0 && (x as f32).is_finite() => Ok(x as f32),
                _ => Err(self.wrong(key, value, "a positive number")),
            },
        }
    }

    /// A flag, or `default`.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A string, or `default`.
    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, LoadError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// Fails unless `key` is absent or one of `supported`.
    pub fn only(&self, key: &str, default: &str, supported: &[&str]) -> Result<(), LoadError> {
        let value = self.text_or(key, default)?;
        if supported.contains(&value) { Ok(()) } else { Err(self.unsupported(key, value, &supported.join(", "))) }
    }

    /// The error for a value that is understood but not computed.
    pub fn unsupported(&self, key: &str, value: impl ToString, supported: &str) -> LoadError {
        LoadError::Unsupported {
            file: self.file.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            supported: supported.to_owned(),
        }
    }

    /// The error for a configuration that contradicts itself.
    pub fn contradiction(&self, detail: impl ToString) -> LoadError {
        LoadError::malformed(&self.file, detail)
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> LoadError {
        LoadError::malformed(&self.file, format!("{key} is {found}; expected {expected}"))
    }

    /// The rotary base frequency: `rope_theta` here, or in `rope_parameters` (flat, or one object a layer type). Scaled
    /// variants of rotary embedding are refused.
    pub fn rope_theta(&self, layer_type: &str, old_key: &str, default: f32) -> Result<f32, LoadError> {
        if let Some(scaling) = self.section("rope_scaling")? {
            scaling.default_rope()?;
        }
        let Some(parameters) = self.section("rope_parameters")? else {
            return self.positive_or(old_key, Some(default));
        };
        let parameters = parameters.section(layer_type)?.unwrap_or(parameters);
        parameters.default_rope()?;
        let outer = self.positive_or(old_key, Some(default))?;
        parameters.positive_or("rope_theta", Some(outer))
    }

    fn default_rope(&self) -> Result<(), LoadError> {
        let key = if self.value("rope_type").is_some() { "rope_type" } else { "type" };
        self.only(key, "default", &["default"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse("config.json".into(), json.as_bytes()).unwrap()
    }

    #[test]
    fn reads_both_forms_of_rope() {
        let theta = |json: &str| config(json).rope_theta("full_attention", "rope_theta", 10_000.0).unwrap();
        assert_eq!(theta(r#"{"rope_theta": 1e6}"#), 1e6);
        assert_eq!(theta(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}"#), 5e5);
        assert_eq!(theta(r#"{"rope_parameters": {"full_attention": {"rope_theta": 7e5}}}"#), 7e5);
        assert_eq!(theta(r#"{"rope_scaling": null}"#), 10_000.0);
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        let check = |json: &str, expected: &str| {
            let c = config(json);
            let error = c.size("hidden_size").and(c.rope_theta("full_attention", "rope_theta", 1.0).map(|_| 0));
            assert_eq!(error.unwrap_err().to_string(), expected);
        };
        check("{}", "config.json: hidden_size is missing");
        check(r#"{"hidden_size": 0}"#, "config.json: hidden_size is 0; expected a whole number from 1 to 10000000");
        check(
            r#"{"hidden_size": 8, "rope_scaling": {"type": "yarn"}}"#,
            "config.json: type is yarn; supported: default",
        );
    }
}
