//! The models an engine serves, as it calls them.
//!
//! However long or odd an answer is: at most [`MODELS_MAX`] names, each of them sound and each once, and of the rest
//! only the few details that a client may see.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::plausible;

/// Names kept of one backend, aliases included. A router with hundreds of models is common, thousands are not.
const MODELS_MAX: usize = 4_096;

/// One name under which a backend serves a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServedModel {
    /// The name to ask it for: 1 to 256 bytes without control characters.
    pub native: String,
    /// Whether it is only another name of a model that stands before it in the list.
    pub alias: bool,
    /// Whether it would serve the model without loading it first, which can take minutes.
    pub loaded: Option<bool>,
    /// Whether the model takes images.
    pub vision: Option<bool>,
    /// For `GET /v1/models`: `created`, `owned_by`, `max_model_len` (whatever the engine calls it), and Ollama's
    /// `family`, `parameter_size`, `quantization_level`. Whole numbers and short strings, no paths, no addresses.
    pub details: Map<String, Value>,
}

impl ServedModel {
    /// A model of which only the name is known, if there is one.
    pub(super) fn named(name: &Value) -> Option<Self> {
        let native = name.as_str().filter(|name| plausible::text(name))?.to_owned();
        Some(Self { native, ..Self::default() })
    }

    /// The same model under another name.
    pub(super) fn also_named(&self, name: &str) -> Option<Self> {
        plausible::text(name).then(|| Self { native: name.to_owned(), alias: true, ..self.clone() })
    }

    /// Keeps a detail that must be a whole number.
    pub(super) fn note_number(&mut self, key: &str, value: &Value) {
        if value.is_u64() {
            self.details.insert(key.to_owned(), value.clone());
        }
    }

    /// Keeps a detail that must be a word.
    pub(super) fn note_text(&mut self, key: &str, value: &Value) {
        if value.as_str().is_some_and(plausible::text) {
            self.details.insert(key.to_owned(), value.clone());
        }
    }
}

/// The models of a list, read entry by entry, the names of one entry one after the other. No list, or one in which
/// nothing makes sense, is unknown; JSON's `null` is how Go writes an empty one.
pub(super) fn read_list(list: &Value, read: impl Fn(&Value) -> Vec<ServedModel>) -> Option<Vec<ServedModel>> {
    if list.is_null() {
        return Some(Vec::new());
    }
    let entries = list.as_array()?;
    let mut seen = HashSet::new();
    let fresh = |model: &ServedModel| seen.insert(model.native.clone());
    let models: Vec<_> = entries.iter().flat_map(read).filter(fresh).take(MODELS_MAX).collect();
    (entries.is_empty() || !models.is_empty()).then_some(models)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(list: &Value) -> Option<Vec<String>> {
        let models = read_list(list, |entry| ServedModel::named(entry).into_iter().collect())?;
        Some(models.into_iter().map(|model| model.native).collect())
    }

    #[test]
    fn keeps_sound_names_once() {
        let long = "n".repeat(plausible::TEXT_MAX_BYTES + 1);
        let list =
            json!(["a", "b", "a", "", "x\ny", 3, null, {"id": "c"}, long, "n".repeat(plausible::TEXT_MAX_BYTES)]);
        assert_eq!(names(&list), Some(vec!["a".into(), "b".into(), "n".repeat(256)]));
    }

    #[test]
    fn empty_is_known_and_nonsense_is_not() {
        assert_eq!(names(&json!([])), Some(vec![]));
        assert_eq!(names(&json!(null)), Some(vec![]));
        for nonsense in [json!([1, 2]), json!({"a": 1}), json!("a"), json!(7)] {
            assert_eq!(names(&nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn keeps_no_more_than_the_limit() {
        let many: Value = (0..MODELS_MAX + 1_000).map(|n| json!(format!("model-{n}"))).collect();
        let kept = names(&many).unwrap();
        assert_eq!((kept.len(), kept[4_095].as_str()), (4_096, "model-4095"));
    }

    #[test]
    fn details_have_their_type() {
        let mut model = ServedModel::named(&json!("m")).unwrap();
        for (key, value) in [("n", json!(8192)), ("neg", json!(-1)), ("real", json!(1.5)), ("word", json!("8192"))] {
            model.note_number(key, &value);
        }
        for (key, value) in [("t", json!("vllm")), ("num", json!(1)), ("ctl", json!("a\u{7}")), ("empty", json!(""))] {
            model.note_text(key, &value);
        }
        assert_eq!(Value::Object(model.details), json!({"n": 8192, "t": "vllm"}));
    }
}
