//! TLS as it is configured: certificates, keys and authorities read from their files and made into what rustls takes.
//!
//! TLS 1.2 and 1.3 alone are spoken, without early data. Whatever is wrong with a file is a mistake at the key that
//! names it. Two values are equal where the files held the same, so that a rotation is a change and another reading of
//! the same files is none.

mod reader;
mod unverified;
mod validity;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

pub(super) use self::reader::Reader;
use super::{Config, file};

/// `[tls]`: how the listener for applications speaks TLS.
#[derive(Debug, Clone)]
pub struct ListenTls {
    /// PEM, the listener's own certificate first.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of these authorities.
    pub client_ca: Option<PathBuf>,
    /// When the certificate expires.
    pub not_after: Option<SystemTime>,
    pub rustls: Arc<ServerConfig>,
    /// Of everything that was read.
    sum: u64,
}

impl PartialEq for ListenTls {
    fn eq(&self, other: &Self) -> bool {
        self.sum == other.sum
    }
}

/// How a backend at an `https://` address is spoken to.
#[derive(Debug, Clone)]
pub struct BackendTls {
    /// Instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// What it is shown where it asks.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name that its certificate must have, and that it is asked for.
    pub server_name: ServerName<'static>,
    /// Whatever it shows is believed.
    pub insecure: bool,
    /// When the certificate that it is shown expires.
    pub not_after: Option<SystemTime>,
    pub rustls: Arc<ClientConfig>,
    /// Of everything that was read; a connection made under another one is not used any more.
    pub sum: u64,
}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.sum == other.sum
    }
}

impl Config {
    /// What of TLS is allowed and should not go unsaid, at this moment.
    pub(super) fn tls_warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut look = |whose: &str, not_after: Option<SystemTime>| {
            if let Some(end) = not_after.filter(|end| *end <= now) {
                let end = humantime::format_rfc3339_seconds(end.max(SystemTime::UNIX_EPOCH));
                warnings.push(format!("{whose} has expired at {end}: it will be refused"));
            }
        };
        look("the certificate in tls.cert", self.tls.as_ref().and_then(|tls| tls.not_after));
        for backend in &self.backends {
            let not_after = backend.tls.as_ref().and_then(|tls| tls.not_after);
            look(&format!("backend {:?}: the certificate in tls.client_cert", backend.name), not_after);
        }
        for backend in self.backends.iter().filter(|backend| backend.tls.as_ref().is_some_and(|tls| tls.insecure)) {
            let name = &backend.name;
            warnings
                .push(format!("backend {name:?}: tls.insecure is true, whoever answers at its address is believed"));
        }
        warnings
    }
}

/// The files that these tables name.
pub(super) fn files(listen: Option<&file::Tls>, backends: &[file::Backend]) -> Vec<PathBuf> {
    let own = listen.into_iter().flat_map(|tls| [&tls.cert, &tls.key, &tls.client_ca]);
    let tables = backends.iter().filter_map(|backend| backend.tls.as_ref());
    let theirs = tables.flat_map(|tls| [&tls.ca, &tls.client_cert, &tls.client_key]);
    own.chain(theirs).flatten().map(|path| path.0.0.clone()).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;
    use crate::config::{Mistakes, Overrides, parse};

    /// A folder with `NAME.pem` and `NAME.key`, which belong together, of each of these names.
    fn folder(names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
            parameters.not_after = date_time_ymd(4000, 1, 1);
            let certificate = parameters.self_signed(&key).unwrap();
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        folder
    }

    fn read(folder: &TempDir, text: &str) -> Result<Config, Mistakes> {
        parse(text, Some(&folder.path().join("vision-proxy.toml")), &Overrides::default())
    }

    fn backend(url: &str, tls: &str) -> String {
        format!("[[backends]]\nurl = \"{url}\"\ntls = {{ {tls} }}\n")
    }

    const PAIR: &str = "[tls]\ncert = \"a.pem\"\nkey = \"a.key\"\n";
    const PLAIN: &str = "[[backends]]\nurl = \"http://gpu\"\n";

    #[test]
    fn whatever_is_wrong_is_a_mistake_at_its_key() {
        let folder = folder(&["a", "b"]);
        std::fs::write(folder.path().join("empty"), "").unwrap();
        std::fs::write(folder.path().join("broken"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        std::fs::write(
            folder.path().join("junk"),
            "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("large"), vec![b' '; 1 << 21]).unwrap();
        let listen = |lines: &str| format!("[tls]\n{lines}\n{PLAIN}");
        let https = |tls: &str| backend("https://gpu", tls);
        for (text, key, part) in [
            (listen("key = \"a.key\""), "tls.cert", "is missing"),
            (listen("cert = \"a.pem\""), "tls.key", "is missing"),
            (listen("cert = \"a.pem\"\nkey = \"b.key\""), "tls.key", "does not belong to the certificate"),
            (listen("cert = \"a.key\"\nkey = \"a.key\""), "tls.cert", "holds no certificate in PEM"),
            (listen("cert = \"a.pem\"\nkey = \"a.pem\""), "tls.key", "holds no private key"),
            (listen("cert = \"none\"\nkey = \"a.key\""), "tls.cert", "cannot read"),
            (listen("cert = \"large\"\nkey = \"a.key\""), "tls.cert", "longer than 1 MiB"),
            (listen("cert = \"broken\"\nkey = \"a.key\""), "tls.cert", "is not PEM"),
            (listen("cert = \"junk\"\nkey = \"a.key\""), "tls.cert", "does not begin with a certificate"),
            (
                listen("cert = \"a.pem\"\nkey = \"a.key\"\nclient_ca = \"empty\""),
                "tls.client_ca",
                "holds no certificate",
            ),
            (listen("cert = 1\nkey = \"a.key\""), "tls.cert", "should be the path of a file"),
            (backend("http://gpu", "insecure = false"), "backends[0].tls", "give its https:// address"),
            (https("ca = \"junk\""), "backends[0].tls.ca", "does not begin with a certificate"),
            (https("ca = \"a.pem\", insecure = true"), "backends[0].tls.insecure", "contradicts ca"),
            (https("ca = \"a.pem\", client_cert = \"b.pem\""), "backends[0].tls.client_key", "is missing"),
            (https("ca = \"a.pem\", client_key = \"b.key\""), "backends[0].tls.client_cert", "is missing"),
            (https("ca = \"a.pem\", server_name = \"a b\""), "backends[0].tls.server_name", "the name of a host"),
            (https("insecure = 1"), "backends[0].tls.insecure", "true or false"),
            (https("verify = false"), "backends[0].tls.verify", "unknown key"),
        ] {
            let all = read(&folder, &text).expect_err(&text).all;
            let [mistake] = all.as_slice() else { panic!("{text}\nhas {all:#?}") };
            assert!(
                mistake.key == key && mistake.line.is_some() && mistake.message.contains(part),
                "{text}\n{mistake:?}"
            );
        }
    }

    #[test]
    fn values_are_equal_where_the_files_are() {
        let folder = folder(&["a", "b"]);
        let of = |text: &str| {
            let config = read(&folder, text).unwrap_or_else(|why| panic!("{text}\n{why}"));
            (config.tls, config.backends.into_iter().next().and_then(|backend| backend.tls))
        };
        let texts = [
            "ca = \"a.pem\"",
            "ca = \"b.pem\"",
            "ca = \"a.pem\", server_name = \"gpu-a\"",
            "ca = \"a.pem\", client_cert = \"b.pem\", client_key = \"b.key\"",
            "insecure = true",
        ];
        let texts = texts.map(|tls| format!("{PAIR}{}", backend("https://gpu", tls)));
        let before = texts.each_ref().map(|text| of(text));
        for (at, text) in texts.iter().enumerate() {
            let again = of(text);
            for (other, before) in before.iter().enumerate() {
                assert_eq!(again.1 == before.1, at == other, "{at} {other}");
            }
            assert!(again.0 == before[0].0, "the listener's is the same in all");
        }
        for name in ["a.pem", "a.key"] {
            let other = name.replace('a', "b");
            std::fs::copy(folder.path().join(other), folder.path().join(name)).unwrap();
        }
        assert!(of(&texts[0]).0 != before[0].0 && of(&texts[0]).1 != before[0].1, "rotated");
        assert!(of(&texts[0]).1 == before[1].1, "and what it holds now is what counts");
    }

    #[test]
    fn the_name_is_that_of_the_address_unless_another_is_given() {
        let folder = folder(&["a"]);
        for (url, more, name) in [
            ("https://GPU-A.internal", "", "gpu-a.internal"),
            ("https://[::1]:8000", "", "::1"),
            ("https://10.0.0.11", ", server_name = \"gpu-a\"", "gpu-a"),
        ] {
            let config = read(&folder, &backend(url, &format!("ca = \"a.pem\"{more}"))).unwrap();
            assert_eq!(config.backends[0].tls.as_ref().unwrap().server_name.to_str(), name);
        }
    }

    #[test]
    fn every_file_is_named_also_of_a_configuration_that_is_refused() {
        let folder = folder(&[]);
        let path = folder.path().join("vision-proxy.toml");
        let tls = "ca = \"ca.pem\", client_cert = \"c.pem\", client_key = \"/keys/c.key\"";
        std::fs::write(&path, format!("{PAIR}client_ca = \"them.pem\"\nodd = 1\n{}", backend("https://gpu", tls)))
            .unwrap();
        let names = ["a.pem", "a.key", "them.pem", "ca.pem", "c.pem", "/keys/c.key"];
        assert_eq!(crate::config::files(&path), names.map(|name| folder.path().join(name)));
    }

    #[test]
    fn what_has_expired_and_what_is_not_verified_does_not_go_unsaid() {
        let folder = folder(&["a"]);
        let tls = "insecure = true, client_cert = \"a.pem\", client_key = \"a.key\"";
        let config = read(&folder, &format!("{PAIR}{}", backend("https://gpu", tls))).unwrap();
        let warnings = |at: &str| config.warnings(humantime::parse_rfc3339(at).unwrap());
        let [insecure] = &*warnings("3999-12-31T23:59:59Z") else { panic!("one warning") };
        assert!(insecure.contains("\"gpu:443\": tls.insecure is true"), "{insecure}");
        let [listener, client, _] = &*warnings("4000-01-01T00:00:00Z") else { panic!("three warnings") };
        assert!(listener.starts_with("the certificate in tls.cert has expired"), "{listener}");
        assert!(client.starts_with("backend \"gpu:443\": the certificate in tls.client_cert"), "{client}");
    }
}
