//! The backends a plugin is told of, and builders that make such fleets for tests.

/// All backends that the host knows, up or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Grows by at least one with every change of the fleet.
    pub generation: u64,
    /// The public model names; [`Request::model`](crate::Request::model) is an index into them.
    pub models: Vec<String>,
    /// A backend's place here is its index everywhere else.
    pub backends: Vec<Backend>,
}

impl Fleet {
    /// A fleet for a test, empty to begin with.
    pub fn builder() -> FleetBuilder {
        FleetBuilder(Self { generation: 1, ..Self::default() })
    }
}

/// One backend, as a plugin sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its configured name: unique in the fleet, at most 128 bytes.
    pub name: String,
    /// A hash of the name, stable over restarts and versions: for consistent hashing.
    pub hash: u64,
    /// The software it runs: `vllm`, `sglang`, `llama-cpp`, `ollama`, `openai`, …; `unknown` until found out.
    pub engine: String,
    /// The configured weight, 1 where none is given.
    pub weight: u32,
    /// Labels from the configuration, sorted by key.
    pub labels: Vec<(String, String)>,
    /// The names under which the backend itself lists its models (native names), as last reported. It may lie.
    /// Empty while it has not been asked or lists none.
    pub serves: Vec<String>,
    /// Public name and native name, from this backend's `models` in the configuration. An operator's word: it
    /// stands above `serves`.
    pub names: Vec<(String, String)>,
}

impl Backend {
    /// A backend for a test: weight 1, no labels, no models, a hash made up from the name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hash: name.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into())),
            engine: "unknown".to_owned(),
            weight: 1,
            labels: Vec::new(),
            serves: Vec::new(),
            names: Vec::new(),
        }
    }

    /// The value of the label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The same backend with this weight.
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same backend with this label besides.
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self.labels.sort();
        self
    }

    /// The same backend, which lists these native names.
    pub fn serving(mut self, natives: &[&str]) -> Self {
        self.serves.extend(natives.iter().map(|native| (*native).to_owned()));
        self
    }

    /// The same backend, configured to call the public model `public` by the name `native`.
    pub fn calling(mut self, public: &str, native: &str) -> Self {
        self.names.push((public.to_owned(), native.to_owned()));
        self
    }
}

/// Makes a [`Fleet`] for a test.
#[derive(Debug, Clone)]
pub struct FleetBuilder(Fleet);

impl FleetBuilder {
    /// Adds a public model name.
    pub fn model(mut self, public: &str) -> Self {
        self.0.models.push(public.to_owned());
        self
    }

    /// Adds a backend; the first has index 0.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.0.backends.push(backend);
        self
    }

    /// The fleet.
    pub fn build(self) -> Fleet {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_backend_is_as_the_host_would_tell_it() {
        let long = "a-name-that-is-longer-than-a-hash-of-eight-bytes";
        let backend = Backend::new(long).with_label("zone", "a").with_label("rack", "7");
        assert_ne!(backend.hash, Backend::new("another").hash);
        assert_eq!(backend.labels[0].0, "rack");
        assert_eq!((backend.label("zone"), backend.label("row")), (Some("a"), None));
    }
}
