//! Reading a model's configuration strictly.
//!
//! [`Fields`] records every key that is read. [`Fields::finish`] then refuses each remaining one, because a key
//! that nobody reads may change the arithmetic: a wrong answer would follow without a word. Keys that are known to
//! change nothing are passed over by name, in lists that give the reason.
//!
//! The same reader serves `config.json` and the `<architecture>.*` keys of a GGUF file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value};

use super::error::{ImportError, excerpt};
use super::gguf::{self, GgufMetadata};

/// A list of keys that are passed over, and why that is right.
pub struct Harmless {
    /// Why the keys cannot change the arithmetic.
    pub reason: &'static str,
    /// The keys.
    pub keys: &'static [&'static str],
}

/// Keys of `config.json` that transformers writes for every architecture and that compute nothing.
pub const HARMLESS_HF: &[Harmless] = &[
    Harmless {
        reason: "says where the file comes from or how transformers should load it",
        keys: &[
            "_name_or_path",
            "_commit_hash",
            "transformers_version",
            "transformers.js_config",
            "tokenizer_class",
            "architectures",
            "unsloth_version",
            "unsloth_fixed",
        ],
    },
    Harmless { reason: "the encoding is read from each tensor", keys: &["torch_dtype", "dtype"] },
    Harmless { reason: "read when the checkpoint is opened", keys: &[super::quantised::KEY] },
    Harmless {
        reason: "token ids belong to the tokenizer and to generation",
        keys: &[
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "unk_token_id",
            "sep_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
        ],
    },
    Harmless {
        reason: "used in training only",
        keys: &[
            "initializer_range",
            "attention_dropout",
            "attn_pdrop",
            "hidden_dropout",
            "problem_type",
            "id2label",
            "label2id",
        ],
    },
    Harmless {
        reason: "chooses what transformers returns or how it executes, at equal results",
        keys: &[
            "use_cache",
            "pretraining_tp",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "return_dict",
            "return_dict_in_generate",
            "torchscript",
            "chunk_size_feed_forward",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
        ],
    },
    Harmless {
        reason: "a generation default; sampling is chosen at run time",
        keys: &[
            "max_length",
            "min_length",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "remove_invalid_values",
            "task_specific_params",
            "prefix",
            "finetuning_task",
        ],
    },
];

/// An object of a configuration, with a record of the keys that were read.
pub struct Fields<'a> {
    path: &'a Path,
    /// Leads from the root of the file to this object, with its dot: `rope_scaling.`.
    prefix: String,
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// The fields of an object in the file `path`.
    pub fn new(path: &'a Path, prefix: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        Fields { path, prefix: prefix.into(), map, read: RefCell::default() }
    }

    /// The value of `key`; null counts as absent.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Checks that the `heads` that `key` states divide the width evenly, and are shared out among the key and value heads.
    pub fn shared_heads(
        &self,
        key: &str,
        hidden: usize,
        heads: usize,
        kv_heads: usize,
    ) -> Result<(), ImportError> {
        let even = hidden.is_multiple_of(heads) && (hidden / heads).is_multiple_of(2);
        if even && heads.is_multiple_of(kv_heads) {
            return Ok(());
        }
        let expected = format!(
            "a divisor of the width {hidden} with heads of an even size, and a multiple of the {kv_heads} key and value heads"
        );
        Err(self.error(key, expected, "correct the value"))
    }

    /// An error about `key`, holding the value found against what is expected.
    pub fn error(&self, key: &str, expected: impl Into<String>, remedy: &'static str) -> ImportError {
        let found =
            self.map.get(key).map_or_else(|| "nothing".to_owned(), |value| excerpt(&value.to_string()));
        ImportError::Config {
            path: PathBuf::from(self.path),
            key: format!("{}{key}", self.prefix),
            expected: expected.into(),
            found,
            remedy,
        }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(key, expected, "correct the value")),
        }
    }

    fn required<T>(&self, key: &str, expected: &str, value: Option<T>) -> Result<T, ImportError> {
        value.ok_or_else(|| self.error(key, expected, "add the key"))
    }

    /// A count: a whole number above 0 and below 2^31, so that products of two counts never overflow.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ImportError> {
        self.typed(key, COUNT, |value| match value.as_u64()? {
            n @ 1..=0x7fff_ffff => usize::try_from(n).ok(),
            _ => None,
        })
    }

    /// A whole number that may be 0.
    pub fn whole(&self, key: &str) -> Result<Option<usize>, ImportError> {
        self.typed(key, "a whole number from 0 to 2147483647", |value| {
            value.as_u64().filter(|n| *n <= 0x7fff_ffff).and_then(|n| usize::try_from(n).ok())
        })
    }

    /// Whether `key` is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A count that must be there.
    pub fn required_count(&self, key: &str) -> Result<usize, ImportError> {
        self.required(key, COUNT, self.count(key)?)
    }

    /// A number above 0, written with or without a point. Graphs hold it, or its inverse, in f32.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, ImportError> {
        let normal = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
        self.typed(key, POSITIVE, |value| value.as_f64().filter(|number| normal.contains(number)))
    }

    /// A positive number that must be there.
    pub fn required_positive(&self, key: &str) -> Result<f64, ImportError> {
        self.required(key, POSITIVE, self.positive(key)?)
    }

    /// A positive number, or `default` where none stands.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, ImportError> {
        Ok(self.positive(key)?.unwrap_or(default))
    }

    /// `count` numbers above 0.
    pub fn positives(&self, key: &str, count: usize) -> Result<Vec<f32>, ImportError> {
        let expected = format!("{count} numbers above 0");
        let read = |value: &Value| {
            let number = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
            let numbers = value.as_array()?.iter().map(number).collect::<Option<Vec<_>>>()?;
            (numbers.len() == count).then_some(numbers)
        };
        self.required(key, &expected, self.typed(key, &expected, read)?)
    }

    /// Numbers 0 and 1, or truth values, of which there are at least `count`.
    pub fn switches(&self, key: &str, count: usize) -> Result<Option<Vec<bool>>, ImportError> {
        self.typed(key, &format!("at least {count} times 0 or 1"), |value| {
            let switch = |v: &Value| v.as_bool().or(v.as_u64().filter(|n| *n < 2).map(|n| n == 1));
            let switches = value.as_array()?.iter().map(switch).collect::<Option<Vec<_>>>()?;
            (switches.len() >= count).then_some(switches)
        })
    }

    /// A list of whole numbers that may be 0.
    pub fn wholes(&self, key: &str) -> Result<Option<Vec<usize>>, ImportError> {
        self.typed(key, "a list of whole numbers from 0 to 2147483647", |value| {
            let whole = |v: &Value| v.as_u64().filter(|n| *n <= 0x7fff_ffff)?.try_into().ok();
            value.as_array()?.iter().map(whole).collect()
        })
    }

    /// A choice among words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, ImportError> {
        let Some(found) = self.value(key) else { return Ok(None) };
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
        match choices.iter().find(|(word, _)| found == word) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => Err(self.error(
                key,
                words.join(" or "),
                "this arithmetic is not built; use a model without it",
            )),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ImportError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ImportError> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A nested object, to be finished on its own.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ImportError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields::new(self.path, format!("{}{key}.", self.prefix), map)))
    }

    /// Whether somebody asked for `key`.
    pub fn was_read(&self, key: &str) -> bool {
        self.read.borrow().contains(key)
    }

    /// Accepts `key` only when it is absent or holds a value of which `is_neutral` says that it changes nothing.
    pub fn neutral(
        &self,
        key: &str,
        expected: &str,
        is_neutral: impl FnOnce(&Value) -> bool,
    ) -> Result<(), ImportError> {
        match self.value(key) {
            Some(value) if !is_neutral(value) => {
                Err(self.error(key, expected, "this arithmetic is not built; use a model without it"))
            }
            _ => Ok(()),
        }
    }

    /// Passes over keys that compute nothing.
    pub fn skip(&self, harmless: &[Harmless]) {
        let mut read = self.read.borrow_mut();
        read.extend(harmless.iter().flat_map(|group| group.keys).map(|key| (*key).to_owned()));
    }

    /// Refuses every key that was neither read nor passed over. A null says nothing and is let pass.
    pub fn finish(self) -> Result<(), ImportError> {
        let read = self.read.into_inner();
        let unknown = self.map.iter().filter(|(key, value)| !read.contains(*key) && !value.is_null());
        let keys: Vec<String> = unknown
            .map(|(key, value)| format!("{}{} = {}", self.prefix, excerpt(key), excerpt(&value.to_string())))
            .collect();
        match keys.is_empty() {
            true => Ok(()),
            false => Err(ImportError::UnknownKeys { path: self.path.to_owned(), keys }),
        }
    }
}

const COUNT: &str = "a whole number from 1 to 2147483647";
const POSITIVE: &str = "a number above 0, from 1.2e-38 to 3.4e38";

/// The keys of a GGUF file below `<architecture>.`, as the object that [`Fields`] reads.
pub fn gguf_fields(metadata: &GgufMetadata, architecture: &str) -> Map<String, Value> {
    let prefix = format!("{architecture}.");
    let below = metadata.entries.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
    below.map(|(key, value)| (key.to_owned(), gguf_value(value))).collect()
}

/// Most numbers of an array that says something about each layer.
const SHORT: usize = 1024;

/// What JSON cannot say (an infinity, a long array) becomes a text, which no reader of numbers accepts and which
/// an error can show.
fn gguf_value(value: &gguf::Value) -> Value {
    let float =
        |number: f64| Number::from_f64(number).map_or_else(|| Value::from(number.to_string()), Value::from);
    match value {
        gguf::Value::Unsigned(n) => Value::from(*n),
        gguf::Value::Signed(n) => Value::from(*n),
        gguf::Value::F32(x) => float(f64::from(*x)),
        gguf::Value::F64(x) => float(*x),
        gguf::Value::Bool(b) => Value::from(*b),
        gguf::Value::String(text) => Value::from(text.as_str()),
        gguf::Value::Array(gguf::Array::Bool(v)) if v.len() <= SHORT => Value::from(v.as_slice()),
        gguf::Value::Array(gguf::Array::I32(v)) if v.len() <= SHORT => Value::from(v.as_slice()),
        gguf::Value::Array(gguf::Array::U32(v)) if v.len() <= SHORT => Value::from(v.as_slice()),
        gguf::Value::Array(array) => Value::from(format!("an array of {}", array.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    fn message<T: std::fmt::Debug>(result: Result<T, ImportError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_are_refused_with_their_values() {
        let map = object(r#"{"a": 1, "logit_scale": 0.5, "nothing": null, "use_cache": true}"#);
        let fields = Fields::new(Path::new("config.json"), "", &map);
        assert_eq!(fields.required_count("a").unwrap(), 1);
        fields.skip(HARMLESS_HF);
        let text = message(fields.finish());
        assert!(text.contains("`logit_scale = 0.5`"), "{text}");
        assert!(!text.contains("use_cache") && !text.contains("nothing"), "{text}");
    }

    #[test]
    fn wrong_types_name_key_value_and_expectation() {
        let map = object(r#"{"n": 4.5, "big": 2147483648, "zero": 0, "x": "1", "o": {"f": 3}}"#);
        let fields = Fields::new(Path::new("config.json"), "", &map);
        for (text, parts) in [
            (message(fields.count("n")), ["`n`", "4.5"]),
            (message(fields.count("big")), ["`big`", "2147483648"]),
            (message(fields.count("zero")), ["`zero`", "found 0"]),
            (message(fields.positive("x")), ["`x`", "\"1\""]),
            (message(fields.object("o").unwrap().unwrap().flag("f")), ["`o.f`", "found 3"]),
            (message(fields.required_count("absent")), ["`absent`", "found nothing"]),
        ] {
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
