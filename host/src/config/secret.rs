//! Where secrets are, and fetching them from there. No message quotes one, nor what stands in its place.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::Value;

use super::Secret;
use super::notation::{Notation, Wrong};

/// Longer than any key, short enough that a path to the wrong file costs nothing.
const LIMIT_BYTES: u64 = 64 * 1024;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SecretSource {
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl Notation for SecretSource {
    const FORM: &'static str = "{ file = \"PATH\" } or { env = \"NAME\" }";

    /// Quotes nothing: whatever stands here in its place may be the secret itself.
    fn read(value: &Value) -> Result<Self, Wrong> {
        let wrong = || {
            Wrong::Because(format!("should be {}: a secret is never written in the configuration itself", Self::FORM))
        };
        let table = value.as_table().filter(|table| table.len() == 1).ok_or_else(wrong)?;
        let (key, place) = table.iter().next().ok_or_else(wrong)?;
        let place = place.as_str().filter(|place| !place.is_empty() && !place.contains('\0')).ok_or_else(wrong)?;
        match key.as_str() {
            "file" => Ok(Self::File(place.into())),
            // Anything else is rather a key put in the place of a name, and would be told as "not set".
            "env" if place.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                Ok(Self::Env(place.to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

/// Reads the secret; relative paths start from `folder`. The error says what is wrong with the source.
pub(super) fn fetch(source: &SecretSource, folder: &Path) -> Result<Secret, String> {
    let (text, place) = match source {
        SecretSource::File(path) => {
            let path = folder.join(path);
            let text = read(&path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
            (text, path.display().to_string())
        }
        SecretSource::Env(name) => {
            let text = std::env::var(name)
                .map_err(|_| format!("the environment variable {name} is not set, or not to text"))?;
            (text, format!("the environment variable {name}"))
        }
    };
    checked(text.trim_end_matches(['\r', '\n']), &place)
}

/// A secret that was found at `place`. The error says what is wrong with it and does not quote it.
pub(super) fn checked(secret: &str, place: &str) -> Result<Secret, String> {
    if secret.is_empty() {
        return Err(format!("{place} is empty"));
    }
    // It is sent as one word of a header, where anything else would fail request by request.
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{place} should hold one line of visible ASCII characters without spaces"));
    }
    Ok(Secret::new(secret))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if is_open_to_others(file.metadata()?.permissions().mode()) {
        tracing::warn!(path = %path.display(), "this secret can be read by other users: chmod 600 it");
    }
    // One byte more than allowed, to tell a file at the limit from one over it.
    file.take(LIMIT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LIMIT_BYTES {
        return Err(std::io::Error::other("too long for a secret"));
    }
    Ok(text)
}

/// Whether users besides the owner may read or change a file.
fn is_open_to_others(mode: u32) -> bool {
    mode & 0o077 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch_text(name: &str, text: &[u8]) -> Result<Secret, String> {
        let folder = std::env::temp_dir().join(format!("vision-proxy-secret-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("key"), text).unwrap();
        let fetched = fetch(&SecretSource::File("key".into()), &folder);
        std::fs::remove_dir_all(&folder).unwrap();
        fetched
    }

    #[test]
    fn the_newline_at_the_end_is_not_part_of_a_secret() {
        for text in ["hunter2", "hunter2\n", "hunter2\r\n"] {
            assert_eq!(fetch_text("newline", text.as_bytes()).unwrap().expose(), "hunter2");
        }
    }

    #[test]
    fn useless_files_are_refused_without_quoting_them() {
        let long = "x".repeat(usize::try_from(LIMIT_BYTES).unwrap() + 1);
        for (text, reason) in [
            (&b"\n"[..], "is empty"),
            (b"hunter2 \n", "without spaces"),
            (b"hunter2\nhunter3\n", "one line"),
            ("hünter2".as_bytes(), "ASCII"),
            (b"hunter2\xff", "cannot read"),
            (long.as_bytes(), "too long"),
        ] {
            let why = fetch_text("useless", text).unwrap_err();
            assert!(why.contains(reason) && !why.contains("nter2"), "{why}");
        }
    }

    #[test]
    fn a_missing_place_is_named() {
        let why = fetch(&SecretSource::File("no/such/file".into()), Path::new("/nowhere")).unwrap_err();
        assert!(why.contains("/nowhere/no/such/file"), "{why}");
        let why = fetch(&SecretSource::Env("VISION_PROXY_NO_SUCH_VARIABLE".into()), Path::new("")).unwrap_err();
        assert!(why.contains("VISION_PROXY_NO_SUCH_VARIABLE"), "{why}");
    }

    #[test]
    fn the_environment_holds_secrets_too() {
        // Set by cargo and nextest alike, for a test cannot set one: that is unsafe in a process with threads.
        let secret = fetch(&SecretSource::Env("CARGO_PKG_VERSION".into()), Path::new("")).unwrap();
        assert_eq!(secret.expose(), env!("CARGO_PKG_VERSION"));
    }
}
