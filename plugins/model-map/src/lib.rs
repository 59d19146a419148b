//! Public model names from the configuration, and whatever backends list themselves.
//!
//! All answers are worked out when the fleet changes; a question is a look-up.
//!
//! A name and the same name with `:latest` are one model, as Ollama has it. An answer spells a name as the backend
//! lists it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use vision_proxy_sdk::{Backend, Fleet, Level, Route, Setup, Translator, export_translator, log};

/// The translator `model-map`. A backend serves a public name under
/// 1. the name that its own `models` give it, else
/// 2. the first name of the `[models]` table that it lists, else
/// 3. the public name itself, if it lists that.
pub struct ModelMap {
    /// `[models]`: a public name, and the names it may have on backends, best first.
    models: BTreeMap<String, Vec<String>>,
    /// Routes of the names that the configuration mentions.
    configured: BTreeMap<String, Vec<Route>>,
    /// Routes of the names that backends list, by the name without `:latest`.
    listed: BTreeMap<String, Vec<Route>>,
    catalog: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    models: BTreeMap<String, Vec<String>>,
}

/// Names past these bounds would be refused by the host, and with them the whole answer.
const CATALOG_NAMES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 256;

impl Translator for ModelMap {
    fn configure(setup: &Setup) -> Result<Self, String> {
        let Settings { models } = setup.settings()?;
        Ok(Self { models, configured: BTreeMap::new(), listed: BTreeMap::new(), catalog: BTreeSet::new() })
    }

    fn update(&mut self, fleet: &Fleet) {
        self.listed = listed(fleet);
        let named = fleet.backends.iter().flat_map(|backend| &backend.names).map(|(public, _)| public);
        self.configured.clear();
        for public in self.models.keys().chain(named) {
            if self.configured.contains_key(public) {
                continue; // many backends may name it
            }
            let routes = self.routes(fleet, public);
            if !routes.is_empty() {
                self.configured.insert(public.clone(), routes);
            }
        }
        self.catalog = catalog(&self.configured, &self.listed);
        if self.catalog.len() > CATALOG_NAMES_MAX {
            log(Level::Warn, &format!("{} names: only the first {CATALOG_NAMES_MAX} are listed", self.catalog.len()));
        }
    }

    fn resolve(&self, model: &str) -> Vec<Route> {
        let routes = self.configured.get(model).or_else(|| self.listed.get(untagged(model)));
        routes.cloned().unwrap_or_default()
    }

    fn catalog(&self) -> Vec<String> {
        self.catalog.iter().take(CATALOG_NAMES_MAX).cloned().collect()
    }
}

impl ModelMap {
    /// Who serves a public name that the configuration mentions.
    fn routes(&self, fleet: &Fleet, public: &String) -> Vec<Route> {
        let known_as = self.models.get(public).into_iter().flatten().chain([public]);
        let listed: Vec<&Vec<Route>> = known_as.filter_map(|name| self.listed.get(untagged(name))).collect();
        let route = |(index, backend): (usize, &Backend)| {
            if let Some((_, native)) = backend.names.iter().find(|(name, _)| name == public) {
                return Some(Route { backend: index, native: native.clone() });
            }
            listed.iter().find_map(|routes| routes.iter().find(|route| route.backend == index)).cloned()
        };
        fleet.backends.iter().enumerate().filter_map(route).collect()
    }
}

/// Who lists which name. They may list anything: what cannot be a name is left out.
fn listed(fleet: &Fleet) -> BTreeMap<String, Vec<Route>> {
    let mut listed: BTreeMap<String, Vec<Route>> = BTreeMap::new();
    for (index, backend) in fleet.backends.iter().enumerate() {
        for native in backend.serves.iter().filter(|native| can_be_name(native)) {
            let route = Route { backend: index, native: native.clone() };
            match listed.get_mut(untagged(native)) {
                Some(routes) if routes.last().is_some_and(|last| last.backend == index) => {} // listed twice
                Some(routes) => routes.push(route),
                None => drop(listed.insert(untagged(native).to_owned(), vec![route])),
            }
        }
    }
    listed
}

/// Every public name, and each listed name that has none on some backend that lists it.
fn catalog(configured: &BTreeMap<String, Vec<Route>>, listed: &BTreeMap<String, Vec<Route>>) -> BTreeSet<String> {
    // Extended, not collected: collecting sorts first, which makes the plugin a tenth larger.
    let mut renamed = BTreeSet::new();
    renamed.extend(configured.values().flatten().map(|route| (route.backend, untagged(&route.native))));
    let mut catalog = BTreeSet::new();
    catalog.extend(configured.keys().cloned());
    for (name, routes) in listed {
        let offered = routes.iter().filter(|route| !renamed.contains(&(route.backend, name.as_str())));
        let mut natives: Vec<&String> = offered.map(|route| &route.native).collect();
        natives.dedup();
        catalog.extend(natives.into_iter().cloned());
    }
    catalog
}

fn can_be_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

fn untagged(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

export_translator!(ModelMap);

#[cfg(test)]
mod tests {
    use super::*;

    fn map(models: &str, backends: &[Backend]) -> ModelMap {
        let fleet = backends.iter().cloned().fold(Fleet::builder(), |fleet, backend| fleet.backend(backend)).build();
        let mut map = ModelMap::configure(&Setup::example(&format!(r#"{{"models":{models}}}"#))).unwrap();
        map.update(&fleet);
        map
    }

    fn resolved(map: &ModelMap, public: &str) -> Vec<(usize, String)> {
        map.resolve(public).into_iter().map(|route| (route.backend, route.native)).collect()
    }

    const QWEN: &str = r#"{"qwen-vl":["Qwen/Qwen2.5-VL-7B-Instruct","qwen2.5vl:7b","qwen2.5vl"]}"#;

    #[test]
    fn each_backend_answers_by_its_own_name_in_fleet_order() {
        let map = map(
            QWEN,
            &[
                Backend::new("ollama").serving(&["llama3:latest", "qwen2.5vl:7b"]),
                Backend::new("vllm").serving(&["qwen2.5vl:7b", "Qwen/Qwen2.5-VL-7B-Instruct"]),
                Backend::new("awq").serving(&["Qwen/Qwen2.5-VL-7B-Instruct"]).calling("qwen-vl", "/models/awq"),
                Backend::new("own").serving(&["qwen-vl"]),
                Backend::new("other").serving(&["phi-4"]),
            ],
        );
        let expected = [
            (0, "qwen2.5vl:7b".to_owned()),
            (1, "Qwen/Qwen2.5-VL-7B-Instruct".to_owned()),
            (2, "/models/awq".to_owned()),
            (3, "qwen-vl".to_owned()),
        ];
        assert_eq!(resolved(&map, "qwen-vl"), expected);
        assert_eq!(resolved(&map, "phi-4"), [(4, "phi-4".to_owned())]);
        assert_eq!(resolved(&map, "qwen2.5vl:7b"), [(0, "qwen2.5vl:7b".to_owned()), (1, "qwen2.5vl:7b".to_owned())]);
        assert_eq!(resolved(&map, "gpt-5"), []);
    }

    #[test]
    fn a_name_and_its_latest_are_one_spelt_as_the_backend_does() {
        let map = map(
            QWEN,
            &[
                Backend::new("ollama").serving(&["llama3:latest", "qwen2.5vl:latest"]),
                Backend::new("vllm").serving(&["llama3"]),
            ],
        );
        let llama = [(0, "llama3:latest".to_owned()), (1, "llama3".to_owned())];
        assert_eq!(resolved(&map, "llama3"), llama);
        assert_eq!(resolved(&map, "llama3:latest"), llama);
        assert_eq!(resolved(&map, "qwen-vl"), [(0, "qwen2.5vl:latest".to_owned())]);
        assert_eq!(resolved(&map, "llama3:8b"), []);
    }

    #[test]
    fn an_operators_word_needs_no_listing() {
        let map = map("{}", &[Backend::new("down").calling("chat", "/models/chat")]);
        assert_eq!(resolved(&map, "chat"), [(0, "/models/chat".to_owned())]);
        assert_eq!(resolved(&map, "/models/chat"), []);
        assert_eq!(map.catalog(), ["chat"]);
    }

    #[test]
    fn the_catalog_shows_each_model_once_by_its_public_name() {
        let map = map(
            r#"{"qwen-vl":["Qwen/Qwen2.5-VL"],"absent":["nobody-has-it"],"llama":["llama3"]}"#,
            &[
                Backend::new("a").serving(&["Qwen/Qwen2.5-VL", "llama3:latest", "phi-4"]),
                Backend::new("b").serving(&["phi-4", "/models/x", "spare"]).calling("x", "/models/x"),
            ],
        );
        assert_eq!(map.catalog(), ["llama", "phi-4", "qwen-vl", "spare", "x"]);
    }

    #[test]
    fn a_target_on_one_backend_is_still_offered_by_another() {
        let map = map(
            r#"{"best":["big"]}"#,
            &[Backend::new("a").serving(&["big"]), Backend::new("b").serving(&["big"]).calling("best", "small")],
        );
        assert_eq!(map.catalog(), ["best", "big"]);
        assert_eq!(resolved(&map, "big"), [(0, "big".to_owned()), (1, "big".to_owned())]);
    }

    #[test]
    fn what_cannot_be_a_name_is_left_out() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let map = map("{}", &[Backend::new("liar").serving(&["", "a\r\nb", &long, "sound", "sound"])]);
        assert_eq!(map.catalog(), ["sound"]);
        assert_eq!(resolved(&map, "sound"), [(0, "sound".to_owned())]);
        assert_eq!(resolved(&map, "a\r\nb"), []);
    }

    #[test]
    fn a_long_catalog_is_cut() {
        let natives: Vec<String> = (0..5000).map(|n| format!("m{n}")).collect();
        let natives: Vec<&str> = natives.iter().map(String::as_str).collect();
        assert_eq!(map("{}", &[Backend::new("hub").serving(&natives)]).catalog().len(), CATALOG_NAMES_MAX);
    }

    #[test]
    fn a_new_fleet_replaces_the_old_one() {
        let mut map = map("{}", &[Backend::new("a").serving(&["phi-4"])]);
        map.update(&Fleet::builder().backend(Backend::new("a").serving(&["llama3"])).build());
        assert_eq!(map.catalog(), ["llama3"]);
        assert_eq!(resolved(&map, "phi-4"), []);
    }

    #[test]
    fn a_setting_that_does_nothing_is_refused() {
        let error = ModelMap::configure(&Setup::example(r#"{"model":{}}"#)).err().unwrap();
        assert!(error.contains("unknown field `model`"), "{error}");
        assert!(ModelMap::configure(&Setup::example("{}")).is_ok());
    }
}
