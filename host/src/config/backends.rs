//! The backends of a configuration: those of the file, then those of the command line.
//!
//! No two have one name, for it is their identity across reloads. No two are one server, for its slots would
//! count twice.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use super::document::{Findings, join};
use super::names::{Name, SHORT_NAME_LIMIT_BYTES};
use super::notation::Written;
use super::secret::{self, SecretSource};
use super::{BackendConfig, BackendUrl, MetricsAt, Secret, file, tls};

/// Under what mistakes of the command line are filed.
const OPTION: &str = "--backend";

/// Turns what was typed into backends; what is wrong goes to `findings`.
pub(super) fn read(
    findings: &mut Findings,
    tls: &tls::Reader<'_>,
    folder: &Path,
    typed: Vec<file::Backend>,
    options: &[String],
) -> Vec<BackendConfig> {
    // An empty list that was written is meant: they will be registered.
    if typed.is_empty() && options.is_empty() && findings.line("backends").is_none() {
        findings.add(
            "backends",
            "there are none; give --backend http://HOST:PORT, or write [[backends]] and url = \"http://HOST:PORT\" to the file (--config FILE); backends = [] where they register themselves",
        );
    }
    let mut list = List { findings, tls, folder, names: BTreeMap::new(), urls: BTreeMap::new() };
    let mut backends: Vec<_> = typed.into_iter().enumerate().filter_map(|(at, typed)| list.typed(at, typed)).collect();
    backends.extend(options.iter().filter_map(|url| list.option(url)));
    backends
}

/// The secret that `key` points at.
pub(super) fn fetch(
    findings: &mut Findings,
    folder: &Path,
    key: &str,
    source: Option<Written<SecretSource>>,
) -> Option<Secret> {
    secret::fetch(&source?.0, folder).map_err(|why| findings.add(key, why)).ok()
}

/// The list in the making.
struct List<'a> {
    findings: &'a mut Findings,
    tls: &'a tls::Reader<'a>,
    folder: &'a Path,
    /// Name → the first key with it.
    names: BTreeMap<String, String>,
    /// Address → the first key with it.
    urls: BTreeMap<String, String>,
}

impl List<'_> {
    /// A backend of the file; `None` where a mistake leaves nothing to go on with.
    fn typed(&mut self, at: usize, typed: file::Backend) -> Option<BackendConfig> {
        let key = format!("backends[{at}]");
        let name_key = join(&key, "name");
        let api_key = fetch(self.findings, self.folder, &join(&key, "api_key"), typed.api_key);
        let name = typed.name.map(|name| name.0.0);
        if let Some(name) = &name {
            self.claim_name(&name_key, name);
        }
        let url = self.url(&join(&key, "url"), typed.url)?;
        let metrics = typed.metrics_url.map(|typed| typed.0);
        // What `tls` says is of either address that speaks it.
        let of_metrics = typed.tls.clone().filter(|_| metrics.as_ref().is_some_and(|metrics| metrics.is_https));
        let of_url = typed.tls.filter(|_| url.is_https || of_metrics.is_none());
        let tls = self.tls.backend(self.findings, &key, &url, of_url);
        let metrics =
            metrics.map(|url| MetricsAt { tls: self.tls.backend(self.findings, &key, &url, of_metrics), url });
        Some(BackendConfig {
            name: name.unwrap_or_else(|| self.default_name(&name_key, &url)),
            url,
            tls,
            metrics,
            engine: typed.engine.and_then(|engine| engine.0.0),
            slots: typed.slots.map(|slots| slots.0.get()),
            weight: typed.weight.map_or(1, |weight| weight.0.get()),
            tier: typed.tier.map_or(0, |tier| tier.0),
            labels: plain(typed.labels),
            models: plain(typed.models),
            api_key,
        })
    }

    /// A backend of the command line.
    fn option(&mut self, text: &str) -> Option<BackendConfig> {
        let url: BackendUrl = match text.parse() {
            Ok(url) => url,
            Err(why) => {
                // Many may be given, so it says which; but before an `@` stands a password.
                let shown = text.rsplit('@').next().unwrap_or(text);
                self.findings.add(OPTION, format!("{shown:?}: {why}"));
                return None;
            }
        };
        let url = self.claim_url(OPTION, url)?;
        let tls = self.tls.backend(self.findings, OPTION, &url, None);
        Some(BackendConfig {
            name: self.default_name(OPTION, &url),
            url,
            tls,
            metrics: None,
            engine: None,
            slots: None,
            weight: 1,
            tier: 0,
            labels: BTreeMap::new(),
            models: BTreeMap::new(),
            api_key: None,
        })
    }

    /// The address of a backend of the file, if it has one of its own.
    fn url(&mut self, key: &str, typed: Option<Written<BackendUrl>>) -> Option<BackendUrl> {
        match typed {
            Some(Written(url)) => self.claim_url(key, url),
            None => {
                if self.findings.is_sound(key) {
                    self.findings.add(key, "is missing; give one, such as url = \"http://10.0.0.11:8000\"");
                }
                None
            }
        }
    }

    fn claim_url(&mut self, key: &str, url: BackendUrl) -> Option<BackendUrl> {
        match self.urls.entry(url.to_string()) {
            Entry::Vacant(free) => {
                free.insert(key.to_owned());
                Some(url)
            }
            Entry::Occupied(taken) => {
                let first = place(self.findings, taken.get());
                self.findings
                    .add(key, format!("{url} is already {first}; list a server once, or its slots would count twice"));
                None
            }
        }
    }

    fn claim_name(&mut self, key: &str, name: &str) {
        match self.names.entry(name.to_owned()) {
            Entry::Vacant(free) => {
                free.insert(key.to_owned());
            }
            Entry::Occupied(taken) => {
                let first = place(self.findings, taken.get());
                self.findings.add(key, format!("{name:?} is already {first}; every backend needs a name of its own"));
            }
        }
    }

    /// `host:port`, where no name was given.
    fn default_name(&mut self, key: &str, url: &BackendUrl) -> String {
        let name = format!("{}:{}", url.host, url.port);
        if name.len() > SHORT_NAME_LIMIT_BYTES {
            self.findings
                .add(key, format!("is needed here: {name:?} would be longer than {SHORT_NAME_LIMIT_BYTES} bytes"));
        } else if self.findings.is_sound(key) {
            self.claim_name(key, &name);
        }
        name
    }
}

/// A key with its line, to point at.
fn place(findings: &Findings, key: &str) -> String {
    match findings.line(key) {
        Some(line) => format!("{key} (line {line})"),
        None => key.to_owned(),
    }
}

fn plain(typed: BTreeMap<Written<Name>, Written<Name>>) -> BTreeMap<String, String> {
    typed.into_iter().map(|(key, value)| (key.0.0, value.0.0)).collect()
}
