//! Who signed a plugin file.
//!
//! Invariants:
//! - A signature is one that `minisign -V` takes, over the whole file, and lies beside it: `NAME.wasm.minisig` for `NAME.wasm`. It says nothing of the name.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use minisign_verify::{Error, PublicKey, Signature};

use super::{Refusal, Stage, folder};

/// A signature has four lines; comments may be long, but not this long.
const SIGNATURE_MAX_BYTES: u64 = 16 << 10;

/// Where the signature of a file lies.
pub(super) fn beside(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".minisig");
    path.into()
}

/// The one of these public keys that signed a file with these bytes.
///
/// # Errors
/// There is no signature, none that can be read, or none that counts.
pub(super) fn signer(file: &Path, bytes: &[u8], trusted_keys: &[String]) -> Result<String, Refusal> {
    let no = |reason: String| Refusal::new(Stage::Signature, reason);
    let path = beside(file);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = String::new();
    let read = folder::open(&path).and_then(|file| file.take(SIGNATURE_MAX_BYTES).read_to_string(&mut text));
    read.map_err(|error| no(format!("`plugins.trusted_keys` wants a signature, and {name} cannot be read: {error}")))?;
    let signature =
        Signature::decode(&text).map_err(|error| no(format!("{name} is no signature of minisign: {error}")))?;
    let mut why = Error::UnexpectedKeyId;
    for key in trusted_keys {
        match PublicKey::from_base64(key).and_then(|public| public.verify(bytes, &signature, true)) {
            Ok(()) => return Ok(key.clone()),
            Err(error) => why = if matches!(error, Error::UnexpectedKeyId) { why } else { error },
        }
    }
    Err(no(match why {
        Error::UnexpectedKeyId => format!("{name} is by none of `plugins.trusted_keys`"),
        error => format!("{name} is not a signature of this content: {error}"),
    }))
}
