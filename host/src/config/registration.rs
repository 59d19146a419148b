//! A backend that is registered while the proxy runs: the keys of a `[[backends]]` table as JSON, read by the same code
//! with the same words.
//!
//! One key more is known, `ttl`. And `api_key` is the key itself: a file or a variable of this machine would be read on
//! behalf of whoever registers a backend, and sent to an address of their choice.

use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

use super::notation::{Notation, Positive, Wrong, describe};
use super::{BackendConfig, Mistake, Mistakes, Secret, backends, document, secret, tls};

/// A shorter heartbeat would be lost in the jitter of networks and busy nodes.
const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The backend, with every default applied.
    pub backend: BackendConfig,
    /// It goes when it is not registered again within this time; `None`: it stays.
    pub ttl: Option<Duration>,
}

/// Reads what is registered under `name`. Relative paths start from `folder`.
///
/// # Errors
/// Every mistake, with the key as it stands in the JSON; there are no lines.
pub fn registration(name: &str, json: &[u8], folder: &Path) -> Result<Registration, Mistakes> {
    let mut mistakes = Vec::new();
    let mut typed: Table = serde_json::from_slice(json).map_err(|why| {
        let message = format!("should be a JSON object with the keys of a [[backends]] table: {why}");
        refused(vec![mistake("", message)])
    })?;
    if typed.insert("name".to_owned(), Value::from(name)).is_some_and(|other| other.as_str() != Some(name)) {
        mistakes.push(mistake("name", format!("should be left out: the path says {name:?}")));
    }
    if typed.remove("tls").is_some() {
        // Paths: whoever registers could have the proxy show its own certificates to an address of their choice.
        mistakes.push(mistake("tls", "is for the configuration file alone".to_owned()));
    }
    let ttl = typed.remove("ttl").and_then(|value| ttl(&value).map_err(|why| mistakes.push(mistake("ttl", why))).ok());
    let api_key = typed.remove("api_key").and_then(|key| key_itself(&key).map_err(|why| mistakes.push(why)).ok());
    let read = backend(typed, folder).map_err(|more| mistakes.extend(more));
    match read {
        Ok(backend) if mistakes.is_empty() => Ok(Registration { backend: BackendConfig { api_key, ..backend }, ttl }),
        _ => Err(refused(mistakes)),
    }
}

/// One table of a file that holds nothing else.
fn backend(typed: Table, folder: &Path) -> Result<BackendConfig, Vec<Mistake>> {
    let file = Table::from_iter([("backends".to_owned(), Value::Array(vec![Value::Table(typed)]))]);
    let text = toml::to_string(&file).map_err(|why| vec![mistake("", why.to_string())])?;
    let read = document::read(&text).and_then(|(typed, mut findings)| {
        let backends = backends::read(&mut findings, &tls::Reader::new(folder), folder, typed.backends.0, &[]);
        let mistakes = findings.into_mistakes();
        backends.into_iter().next().filter(|_| mistakes.is_empty()).ok_or(mistakes)
    });
    read.map_err(|mistakes| mistakes.into_iter().map(in_json).collect())
}

/// The same mistake, at its place in the JSON.
fn in_json(mistake: Mistake) -> Mistake {
    let key = mistake.key.trim_start_matches("backends[0]").trim_start_matches('.').to_owned();
    Mistake { key, line: None, ..mistake }
}

fn ttl(value: &Value) -> Result<Duration, String> {
    let ttl = Positive::read(value).map_err(|wrong| match wrong {
        Wrong::Form => format!("should be {}, not {}", Positive::FORM, describe(value)),
        Wrong::Because(why) => why,
    })?;
    if ttl.0 < SHORTEST_TTL { Err("should be at least \"1s\"".to_owned()) } else { Ok(ttl.0) }
}

fn key_itself(value: &Value) -> Result<Secret, Mistake> {
    let text = value.as_str().ok_or_else(|| {
        let why = "should be the key itself, as text: files and variables of the proxy's machine are not read for a \
                   backend that is registered";
        mistake("api_key", why.to_owned())
    })?;
    secret::checked(text, "it").map_err(|why| mistake("api_key", why))
}

fn mistake(key: &str, message: String) -> Mistake {
    Mistake { key: key.to_owned(), line: None, message }
}

fn refused(all: Vec<Mistake>) -> Mistakes {
    Mistakes { path: None, all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Registration, Vec<(String, String)>> {
        let told = |mistake: Mistake| (mistake.key, mistake.message);
        registration("gpu-a", json.as_bytes(), Path::new("")).map_err(|all| all.all.into_iter().map(told).collect())
    }

    #[test]
    fn what_is_registered_means_what_it_means_in_the_file() {
        let typed = r#"{"url": "http://10.0.0.11:8000/v1", "engine": "vllm", "metrics_url": "http://10.0.0.11:9000", "slots": 4, "weight": 2, "tier": 1,
                        "labels": {"zone": "a"}, "models": {"qwen": "Qwen/Qwen2.5-VL"}, "api_key": "sk-1", "ttl": "30s"}"#;
        let file = "[[backends]]\nname = \"gpu-a\"\nurl = \"http://10.0.0.11:8000/v1\"\nengine = \"vllm\"\nmetrics_url = \"http://10.0.0.11:9000\"\nslots = 4\n\
                    weight = 2\ntier = 1\nlabels.zone = \"a\"\nmodels.qwen = \"Qwen/Qwen2.5-VL\"\n";
        let mut meant =
            crate::config::parse(file, None, &crate::config::Overrides::default()).unwrap().backends.remove(0);
        meant.api_key = Some(Secret::new("sk-1"));
        assert_eq!(read(typed), Ok(Registration { backend: meant, ttl: Some(Duration::from_secs(30)) }));
        let least = read(r#"{"url": "http://gpu:8000", "name": "gpu-a"}"#).unwrap();
        assert_eq!((least.backend.name.as_str(), least.backend.weight, least.ttl), ("gpu-a", 1, None));
    }

    #[test]
    fn every_mistake_is_told_at_its_key() {
        let all = read(r#"{"url": "ftp://gpu", "slots": 0, "metrics_url": "gpu:8002", "wieght": 1, "ttl": "10ms", "api_key": {"file": "/etc/shadow"}, "name": "b"}"#)
            .unwrap_err();
        for (key, part) in [
            ("url", "http:// or https://"),
            ("metrics_url", "http:// or https://"),
            ("slots", "a whole number from 1"),
            ("wieght", "did you mean `weight`?"),
            ("ttl", "at least \"1s\""),
            ("api_key", "should be the key itself"),
            ("name", "the path says \"gpu-a\""),
        ] {
            assert!(all.iter().any(|(at, why)| at == key && why.contains(part)), "{key}: {all:?}");
        }
        assert_eq!(all.len(), 7, "{all:?}");
    }

    #[test]
    fn what_is_no_object_is_refused_as_a_whole() {
        for json in ["", "[]", "3", "{", r#"{"slots": null, "url": "http://gpu"}"#] {
            let all = read(json).unwrap_err();
            assert!(matches!(all.as_slice(), [(key, _)] if key.is_empty()), "{json}: {all:?}");
        }
        assert!(matches!(read("{}").unwrap_err().as_slice(), [(key, why)] if key == "url" && why.contains("missing")));
    }

    #[test]
    fn a_key_that_cannot_be_sent_is_refused_without_quoting_it() {
        let all = read(r#"{"url": "http://gpu", "api_key": "hunter2 \n"}"#).unwrap_err();
        assert!(matches!(all.as_slice(), [(key, why)] if key == "api_key" && !why.contains("hunter2")), "{all:?}");
    }
}
