//! Reading the plugin folder.
//!
//! Invariants:
//! - Every file whose name ends in `.wasm` and does not start with a dot is meant as a plugin.
//! - A content is handed on only if the file was the same before and after reading it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::compile::COMPONENT_MAX_BYTES;
use super::{Refusal, Stage};

/// The longest name of a plugin.
const NAME_MAX_BYTES: usize = 64;

/// Tells a file that was written from one that was not. Links are followed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    dev: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None` for what is no regular file, or is not there any more.
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| Self {
            dev: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// The files of the folder that could be plugins, by the name they would have.
pub(super) fn files(dir: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        if let Some(name) = plugin_name(&entry.file_name().to_string_lossy()) {
            files.insert(name, entry.path());
        }
    }
    Ok(files)
}

/// The name of the plugin in a file of this name. One that cannot be a name is made into one with a `?`, under which
/// the file is refused. `None`: it is not meant as a plugin.
fn plugin_name(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".wasm").filter(|stem| !stem.is_empty() && !stem.starts_with('.'))?;
    let is_fine = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    let mut name: String = stem.chars().map(|char| if is_fine(char) { char } else { '?' }).collect();
    if name.len() > NAME_MAX_BYTES {
        name.truncate(NAME_MAX_BYTES - 1);
        name.push('?');
    }
    Some(name)
}

/// Opens a regular file. What else lies there, a pipe above all, is not waited for, nor read without an end.
pub(super) fn open(path: &Path) -> io::Result<fs::File> {
    let at_once = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::File::options().read(true).custom_flags(at_once).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// The content of the file; `None` where it changes meanwhile.
pub(super) fn read(name: &str, path: &Path, stamp: Stamp) -> Result<Option<Vec<u8>>, Refusal> {
    if name.contains('?') {
        let reason = format!("a plugin's name has letters, digits, `.`, `_` and `-`, at most {NAME_MAX_BYTES}");
        return Err(Refusal::new(Stage::File, reason));
    }
    let max = COMPONENT_MAX_BYTES as u64;
    if stamp.size_bytes > max {
        return Err(Refusal::new(
            Stage::Format,
            format!("it has {} bytes, at most {max} are loaded", stamp.size_bytes),
        ));
    }
    let mut bytes = Vec::new();
    let file = open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    file.map_err(|error| Refusal::new(Stage::File, format!("it cannot be read: {error}")))?;
    let is_still = Stamp::of(path) == Some(stamp) && bytes.len() as u64 == stamp.size_bytes;
    Ok(is_still.then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_that_changed_since_it_was_looked_at_is_none() {
        let path = std::env::temp_dir().join(format!("vision-proxy-folder-{}.wasm", std::process::id()));
        fs::write(&path, b"before").unwrap();
        let before = Stamp::of(&path).unwrap();
        assert_eq!(read("mine", &path, before), Ok(Some(b"before".to_vec())));
        fs::write(&path, b"and after").unwrap();
        assert_eq!(read("mine", &path, before), Ok(None));
        let after = Stamp::of(&path).unwrap();
        assert_eq!(read("mine", &path, after), Ok(Some(b"and after".to_vec())));
        fs::remove_file(&path).unwrap();
        assert_eq!(read("mine", &path, after).unwrap_err().stage, Stage::File);
    }

    #[test]
    fn a_name_is_what_stands_before_the_ending() {
        let name = |file: &str| plugin_name(file);
        assert_eq!(name("round-robin.wasm").as_deref(), Some("round-robin"));
        assert_eq!(name("v1.2_x.wasm").as_deref(), Some("v1.2_x"));
        assert_eq!(name("größe 1.wasm").as_deref(), Some("gr??e?1"));
        assert_eq!(name(&format!("{}.wasm", "x".repeat(64))), Some("x".repeat(64)));
        assert_eq!(name(&format!("{}.wasm", "x".repeat(65))), Some(format!("{}?", "x".repeat(63))));
        for other in [".wasm", ".hidden.wasm", "readme.txt", "x.wasm.tmp", "x.WASM"] {
            assert_eq!(name(other), None);
        }
    }
}
