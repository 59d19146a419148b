//! Reading what `[tls]` and `tls` of backends name, and making of it what rustls takes.

use std::cell::OnceCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

use super::unverified::Unverified;
use super::validity::not_after;
use super::{BackendTls, ListenTls};
use crate::config::document::{Findings, join};
use crate::config::notation::{FilePath, HostName, Written};
use crate::config::{BackendUrl, file};

/// A bundle of every public authority has a quarter of this.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Reads what `[tls]` and `tls` of backends name.
pub struct Reader<'a> {
    folder: &'a Path,
    provider: Arc<CryptoProvider>,
    /// Read where it is needed, and once.
    system: OnceCell<Result<SystemRoots, String>>,
}

/// The authorities, and a digest of them.
type SystemRoots = (Arc<RootCertStore>, [u8; 32]);

/// A chain of certificates with its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_after: Option<SystemTime>,
}

impl<'a> Reader<'a> {
    /// Relative paths start from `folder`.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, provider: Arc::new(ring::default_provider()), system: OnceCell::new() }
    }

    /// `[tls]`.
    pub fn listen(&self, findings: &mut Findings, typed: Option<file::Tls>) -> Option<ListenTls> {
        let typed = typed?;
        let mut sum = Sha256::new();
        let (cert, key) = (self.path(typed.cert), self.path(typed.key));
        let client_ca = self.path(typed.client_ca);
        let identity = self.identity(findings, &mut sum, ("tls.cert", cert.as_deref()), ("tls.key", key.as_deref()));
        let roots = match &client_ca {
            Some(path) => Some(self.roots(findings, &mut sum, "tls.client_ca", path)?),
            None => None,
        };
        let identity = identity?;
        let not_after = identity.not_after;
        let config = self.server(identity, roots).map_err(|why| findings.add(why.0, why.1)).ok()?;
        Some(ListenTls { cert: cert?, key: key?, client_ca, not_after, rustls: Arc::new(config), sum: short(sum) })
    }

    fn server(
        &self,
        identity: Identity,
        roots: Option<Arc<RootCertStore>>,
    ) -> Result<ServerConfig, (&'static str, String)> {
        let at = |key| move |why: rustls::Error| (key, unusable(&why));
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(at("tls"))?;
        let builder = match roots {
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
                builder.with_client_cert_verifier(verifier.map_err(|why| ("tls.client_ca", why.to_string()))?)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(at("tls.cert"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// `tls` of the backend at `url`; `None` for one at a plain address.
    pub fn backend(
        &self,
        findings: &mut Findings,
        key: &str,
        url: &BackendUrl,
        typed: Option<file::BackendTls>,
    ) -> Option<BackendTls> {
        let key = join(key, "tls");
        if !url.is_https {
            if typed.is_some() {
                findings.add(&key, format!("{url} is spoken to without TLS; give its https:// address"));
            }
            return None;
        }
        let typed = typed.unwrap_or_default();
        let insecure = typed.insecure.is_some_and(|insecure| insecure.0);
        let mut sum = Sha256::new();
        let server_name = self.server_name(findings, &join(&key, "server_name"), url, typed.server_name)?;
        sum.update(server_name.to_str().as_bytes());
        let (ca, cert) = (self.path(typed.ca), self.path(typed.client_cert));
        let roots = match (&ca, insecure) {
            (Some(_), true) => {
                findings.add(&join(&key, "insecure"), "contradicts ca: with insecure = true no certificate is checked");
                return None;
            }
            (None, true) => None,
            (Some(path), false) => Some(self.roots(findings, &mut sum, &join(&key, "ca"), path)?),
            (None, false) => Some(self.system_roots(findings, &mut sum, &key)?),
        };
        sum.update([u8::from(insecure)]);
        let client_key = self.path(typed.client_key);
        let cert_key = join(&key, "client_cert");
        let identity = if cert.is_some() || client_key.is_some() {
            let key = (&*join(&key, "client_key"), client_key.as_deref());
            Some(self.identity(findings, &mut sum, (&cert_key, cert.as_deref()), key)?)
        } else {
            None
        };
        let not_after = identity.as_ref().and_then(|identity| identity.not_after);
        let config = self.client(roots, identity).map_err(|why| findings.add(&cert_key, unusable(&why))).ok()?;
        let (rustls, sum) = (Arc::new(config), short(sum));
        Some(BackendTls { ca, client_cert: cert, client_key, server_name, insecure, not_after, rustls, sum })
    }

    /// Without authorities nothing is verified.
    fn client(
        &self,
        roots: Option<Arc<RootCertStore>>,
        identity: Option<Identity>,
    ) -> Result<ClientConfig, rustls::Error> {
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&self.provider)).with_safe_default_protocol_versions()?;
        let builder = match roots {
            Some(roots) => builder.with_root_certificates(roots),
            None => {
                let unverified = Unverified(self.provider.signature_verification_algorithms);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(unverified))
            }
        };
        let mut config = match identity {
            Some(Identity { chain, key, .. }) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        // A backend that has HTTP/2 too must not take us for one who speaks it.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What is written, else the host of the address. Never what a client says.
    fn server_name(
        &self,
        findings: &mut Findings,
        key: &str,
        url: &BackendUrl,
        typed: Option<Written<HostName>>,
    ) -> Option<ServerName<'static>> {
        let Some(typed) = typed else {
            let name = ServerName::try_from(url.host.clone());
            return name
                .map_err(|_| findings.add(key, format!("is needed: no certificate has the name {:?}", url.host)))
                .ok();
        };
        Some(typed.0.0)
    }

    fn path(&self, typed: Option<Written<FilePath>>) -> Option<PathBuf> {
        typed.map(|path| self.folder.join(path.0.0))
    }

    /// The pair of these two keys; each needs the other.
    fn identity(
        &self,
        findings: &mut Findings,
        sum: &mut Sha256,
        (cert_key, cert): (&str, Option<&Path>),
        (key_key, key): (&str, Option<&Path>),
    ) -> Option<Identity> {
        for (missing, path, other) in [(cert_key, cert, "the certificate"), (key_key, key, "the certificate's key")] {
            if path.is_none() && findings.is_sound(missing) {
                findings.add(missing, format!("is missing: the path of {other}, in PEM"));
            }
        }
        let chain = cert.and_then(|path| certificates(findings, sum, cert_key, path));
        let private = key.and_then(|path| {
            let text = read(findings, sum, key_key, path)?;
            let none = |_| {
                findings.add(key_key, format!("{} holds no private key in PEM that is not encrypted", path.display()))
            };
            PrivateKeyDer::from_pem_slice(&text).map_err(none).ok()
        });
        let (chain, key) = (chain?, private?);
        let pair = rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &self.provider);
        if let Err(why) = pair {
            let at = if matches!(why, rustls::Error::InvalidCertificate(_)) { cert_key } else { key_key };
            findings.add(at, unusable(&why));
            return None;
        }
        let not_after = chain.first().and_then(|leaf| not_after(leaf));
        Some(Identity { chain, key, not_after })
    }

    /// The authorities in a file.
    fn roots(&self, findings: &mut Findings, sum: &mut Sha256, key: &str, path: &Path) -> Option<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(findings, sum, key, path)? {
            if let Err(why) = roots.add(certificate) {
                findings.add(key, format!("{}: {}", path.display(), unusable(&why)));
                return None;
            }
        }
        Some(Arc::new(roots))
    }

    /// The system's, for they are kept up to date with it, and private ones are put there by many.
    fn system_roots(&self, findings: &mut Findings, sum: &mut Sha256, key: &str) -> Option<Arc<RootCertStore>> {
        match self.system.get_or_init(read_system_roots) {
            Ok((roots, digest)) => {
                sum.update(digest);
                Some(Arc::clone(roots))
            }
            Err(why) => {
                findings.add(key, why.clone());
                None
            }
        }
    }
}

fn read_system_roots() -> Result<SystemRoots, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let mut digest = Sha256::new();
    for certificate in &found.certs {
        digest.update(certificate);
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or(String::new(), |why| format!(" ({why})"));
        return Err(format!(
            "this system has no certificate authorities{why}: install its ca-certificates, or give tls = {{ ca = \"PATH\" }}"
        ));
    }
    Ok((Arc::new(roots), digest.finalize().into()))
}

fn certificates(
    findings: &mut Findings,
    sum: &mut Sha256,
    key: &str,
    path: &Path,
) -> Option<Vec<CertificateDer<'static>>> {
    let text = read(findings, sum, key, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) => {
            findings.add(key, format!("{} holds no certificate in PEM", path.display()));
            None
        }
        Err(why) => {
            findings.add(key, format!("{} is not PEM: {why}", path.display()));
            None
        }
    }
}

/// A whole file; it goes into the sum.
fn read(findings: &mut Findings, sum: &mut Sha256, key: &str, path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes));
    let wrong = match read {
        Ok(_) if bytes.len() as u64 > FILE_LIMIT_BYTES => "it is longer than 1 MiB".to_owned(),
        Ok(_) => {
            sum.update((bytes.len() as u64).to_be_bytes());
            sum.update(&bytes);
            return Some(bytes);
        }
        Err(why) => why.to_string(),
    };
    findings.add(key, format!("cannot read {}: {wrong}", path.display()));
    None
}

fn unusable(why: &rustls::Error) -> String {
    match why {
        rustls::Error::InconsistentKeys(_) => {
            "does not belong to the certificate, of which the first in its file counts".to_owned()
        }
        rustls::Error::InvalidCertificate(_) => {
            "the file does not begin with a certificate that can be read".to_owned()
        }
        other => other.to_string(),
    }
}

fn short(sum: Sha256) -> u64 {
    sum.finalize().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
