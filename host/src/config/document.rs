//! From text to what was typed, with every mistake and not only the first.
//!
//! serde stops at the first value it dislikes. So that entry is noted, cut out, and the rest read again, until
//! it reads: each round removes one entry, hence it ends. The places of all keys are noted once, before anything
//! is cut, and later checks find their lines by key.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::{Mistake, file, suggest};

/// Mistakes after which reading ends: beyond this it is the wrong file, and each costs a round over it.
const MISTAKE_LIMIT: usize = 100;

/// The mistakes found so far, and where every key of the file stands.
#[derive(Debug, Default)]
pub(super) struct Findings {
    lines: BTreeMap<String, usize>,
    mistakes: Vec<Mistake>,
}

impl Findings {
    /// Notes a mistake at `key`, with its line; of a key that is missing, the line of the table it is missing from.
    pub(super) fn add(&mut self, key: &str, message: impl Into<String>) {
        let line = self.line(key).or_else(|| self.line(key.rsplit_once('.')?.0));
        self.mistakes.push(Mistake { key: key.to_owned(), line, message: message.into() });
    }

    /// The line `key` stands in, where the file has it.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.lines.get(key).copied()
    }

    /// Whether nothing was wrong at this key or below it: what is concluded from a broken value misleads.
    pub(super) fn is_sound(&self, key: &str) -> bool {
        let is_within =
            |inner: &str| inner.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        !self.mistakes.iter().any(|mistake| is_within(&mistake.key))
    }

    /// All mistakes, in the order of the file.
    pub(super) fn into_mistakes(mut self) -> Vec<Mistake> {
        self.mistakes.sort_by_key(|mistake| mistake.line.unwrap_or(usize::MAX));
        self.mistakes
    }
}

/// Reads the file. An error is final: nothing sensible can be concluded from the rest.
pub(super) fn read(text: &str) -> Result<(file::File, Findings), Vec<Mistake>> {
    let mut root = DeTable::parse(text).map_err(|error| vec![syntax(text, &error)])?;
    let places = places(text, root.get_ref());
    let lines = places.iter().map(|place| (place.key.clone(), place.line)).collect();
    let mut findings = Findings { lines, mistakes: Vec::new() };
    while findings.mistakes.len() < MISTAKE_LIMIT {
        let error = match file::File::deserialize(Deserializer::from(root.clone())) {
            Ok(typed) => return Ok((typed, findings)),
            Err(error) => error,
        };
        let Some(place) = places.iter().find(|place| error.span().is_some_and(|span| place.is_at(&span))) else {
            findings.add("", error.message());
            break;
        };
        findings.add(&place.key, place.unknown().unwrap_or_else(|| error.message().to_owned()));
        cut(root.get_mut(), "", &place.entry);
    }
    Err(findings.into_mistakes())
}

fn syntax(text: &str, error: &Error) -> Mistake {
    let line = error.span().map(|span| LineStarts::of(text).line(span.start));
    Mistake { key: String::new(), line, message: format!("not TOML: {}", error.message()) }
}

/// Where one key or list element stands.
struct Place {
    /// `backends[1].url`.
    key: String,
    /// The nearest key around an element of a list; for everything else the key itself. It can be cut out
    /// without changing the indices of others.
    entry: String,
    /// The table it stands in, without indices: `backends`.
    table: String,
    /// Its last word, `None` for an element of a list.
    name: Option<String>,
    line: usize,
    key_span: Range<usize>,
    value_span: Range<usize>,
}

impl Place {
    /// Whether an error at `span` is about this key or its value.
    fn is_at(&self, span: &Range<usize>) -> bool {
        self.key_span == *span || self.value_span == *span
    }

    /// What to say of the key where its table has no such key.
    fn unknown(&self) -> Option<String> {
        let name = self.name.as_deref()?;
        let (_, known) = file::tables().into_iter().find(|(table, _)| *table == self.table)?;
        if known.contains(&name) {
            return None;
        }
        if let Some(near) = suggest::nearest(name, known) {
            return Some(format!("unknown key; did you mean `{near}`?"));
        }
        let elsewhere =
            file::tables().into_iter().find(|(_, keys)| keys.contains(&name)).map(|(table, _)| match table {
                "" => "at the top of the file, before the first [table]".to_owned(),
                "backends" | "keys" => format!("in [[{table}]]"),
                table => format!("in [{table}]"),
            });
        Some(match elsewhere {
            Some(table) => format!("unknown key here; `{name}` stands {table}"),
            None => format!("unknown key; known here: {}", known.join(", ")),
        })
    }
}

/// The places of all keys and list elements, parents before their children.
fn places(text: &str, root: &DeTable<'_>) -> Vec<Place> {
    let mut walk = Walk { lines: LineStarts::of(text), places: Vec::new() };
    walk.table(root, "", "");
    walk.places
}

struct Walk {
    lines: LineStarts,
    places: Vec<Place>,
}

impl Walk {
    fn table(&mut self, entries: &DeTable<'_>, key: &str, table: &str) {
        for (name, value) in entries {
            let (key, below) = (join(key, name.get_ref()), join(table, name.get_ref()));
            self.places.push(Place {
                key: key.clone(),
                entry: key.clone(),
                table: table.to_owned(),
                name: Some(name.get_ref().to_string()),
                line: self.lines.line(name.span().start),
                key_span: name.span(),
                value_span: value.span(),
            });
            self.value(value.get_ref(), &key, &key, &below);
        }
    }

    fn value(&mut self, value: &DeValue<'_>, key: &str, entry: &str, table: &str) {
        match value {
            DeValue::Table(entries) => self.table(entries, key, table),
            DeValue::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let key = format!("{key}[{at}]");
                    self.places.push(Place {
                        key: key.clone(),
                        entry: entry.to_owned(),
                        table: table.to_owned(),
                        name: None,
                        line: self.lines.line(item.span().start),
                        key_span: item.span(),
                        value_span: item.span(),
                    });
                    self.value(item.get_ref(), &key, entry, table);
                }
            }
            _ => {}
        }
    }
}

/// Removes the entry of that dotted key.
fn cut(entries: &mut DeTable<'_>, parent: &str, doomed: &str) {
    let found = entries.keys().map(|name| name.get_ref().clone()).find(|name| join(parent, name) == doomed);
    if let Some(name) = found {
        entries.remove(name.as_ref());
        return;
    }
    for (name, value) in entries.iter_mut() {
        cut_below(value.get_mut(), &join(parent, name.get_ref()), doomed);
    }
}

fn cut_below(value: &mut DeValue<'_>, key: &str, doomed: &str) {
    match value {
        DeValue::Table(entries) => cut(entries, key, doomed),
        DeValue::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                cut_below(item.get_mut(), &format!("{key}[{at}]"), doomed);
            }
        }
        _ => {}
    }
}

/// A dotted key one step longer, with quotes where TOML needs them.
pub(super) fn join(parent: &str, name: &str) -> String {
    let is_bare =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let name = if is_bare { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// Byte offsets at which lines begin.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn of(text: &str) -> Self {
        // What is wrong with the end of a text is told of its last line.
        let others = text.match_indices('\n').map(|(at, _)| at + 1).filter(|start| *start < text.len());
        Self(std::iter::once(0).chain(others).collect())
    }

    /// The line of a byte, from 1.
    fn line(&self, at: usize) -> usize {
        self.0.partition_point(|start| *start <= at)
    }
}
